"""The model: layers, attention, the Transformer language model and its key-value cache.

Pure math on tensors. The model does not choose a device, cast, compile, shard, log or print: its callers do.
"""

from transformerlm.models.attention import scaled_dot_product_attention
from transformerlm.models.flops import flops_per_token, num_parameters
from transformerlm.models.kv_cache import KVCache
from transformerlm.models.layers import Embedding, Linear, RMSNorm, RotaryPositionalEmbedding, SwiGLU
from transformerlm.models.standalone import MultiheadSelfAttentionRoPE, TransformerBlock
from transformerlm.models.transformer import TransformerLM

__all__ = [
    "Linear",
    "Embedding",
    "RMSNorm",
    "SwiGLU",
    "RotaryPositionalEmbedding",
    "scaled_dot_product_attention",
    "MultiheadSelfAttentionRoPE",
    "TransformerBlock",
    "TransformerLM",
    "KVCache",
    "flops_per_token",
    "num_parameters",
]
