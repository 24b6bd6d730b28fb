"""Measuring from outside: CUDA memory and NVTX ranges, safe no-ops on a machine without CUDA.

The code that is measured stays as it is: `attach_nvtx` hooks a model's modules, `nvtx.range` names one
span around a call. Importing this package does not import torch.
"""

from profiling import memory, nvtx
from profiling.hooks import NvtxHandle, attach_nvtx

__all__ = ["memory", "nvtx", "attach_nvtx", "NvtxHandle"]
