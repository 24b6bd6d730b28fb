"""The compiled decode step, one token per row: at small sizes, launching operators costs most.

    ids, positions (B,) ──one compiled graph: embeddings, blocks with their cache, logits──▶ logits (B, V)

It is compiled at the start, once for each of a few batch sizes: a batch is padded to the next size, and the length of
attention is a dynamic dimension.

On a CPU, a product of few rows with a weight matrix is bound by reading, or widening, the weights. So compiled steps
write it as sums, which the compiler fuses into one loop over the weights for all rows. It reads as fast as
the machine can; the kernels of torch's library (Intel's MKL) for few rows do so on Intel's processors, and on AMD's
reach a quarter of it. There eager steps give each thread its share of the outputs, by which MKL takes other kernels.

And `int8` keeps each weight as a byte and a scale for each output (weight-only quantization, as in LLM.int8's
vector-wise form, Dettmers et al. 2022, section 3.1). In a compiled step activations stay float32. In eager mode the
products are torch's kernel for such weights, which takes activations in bfloat16.

Shapes: B rows, T tokens, L slots of the cache, V vocabulary.
"""

import copy
import math
import types
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from transformerlm.fast.apply import blocks_of
from transformerlm.fast.compile import require_compiler
from transformerlm.models import Linear, SwiGLU, TransformerLM
from transformerlm.models.attention import SelfAttention
from transformerlm.models.kv_cache import KVCache
from transformerlm.models.layers import rotate_pairs
from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError

_ROWS_TOGETHER = 8  # more running sums than that do not fit the registers
_FEW_ROWS = 32  # up to which a product for each thread was measured to be faster
_COLUMNS_TOGETHER = 64  # a multiple of what torch's kernel for bytes reads at a time, whether it is there or not
_SHORTEST = 2  # torch.compile specialises on size 1, so a dynamic length starts at 2


@final
class CompiledStep:
    """Compiled decode steps for the rows of a cache."""

    def __init__(self, model: TransformerLM, cache: KVCache, *, batch_sizes: Sequence[int], int8: bool = False) -> None:
        """Compile for these batch sizes, which takes up to half a minute each, seconds when it was done before.

        The weights are shared with `model`; with `int8` they are rounded copies. Raises `ConfigError` if this machine
        cannot compile.
        """
        require_compiler(model.token_embeddings.weight.device, setting="compile")
        self._cache = cache
        self._sizes = sorted({min(size, cache.batch_size) for size in batch_sizes} | {cache.batch_size})
        self._step = _compiled(_prepared(model, int8=int8))
        self._slots_L = torch.arange(cache.max_len, device=cache.keys[0].device)
        self._ids_B, self._positions_B = self._slots_L.new_zeros((2, cache.batch_size))
        for size in self._sizes:
            self(self._ids_B[:size], self._positions_B[:size], _SHORTEST)

    def batch_size(self, num_rows: int) -> int:
        """Return the smallest compiled batch size for this number of rows."""
        return next(size for size in self._sizes if size >= num_rows)

    @torch.inference_mode()
    def __call__(self, ids_B: Tensor, positions_B: Tensor, length: int) -> Tensor:
        """Return the logits (B, V) after the ids of the first B rows, for a B that `batch_size` has returned.

        `positions_B` are the positions of the ids, below `length`.
        """
        size = len(ids_B)
        # Copies, because torch.compile compiles inference-mode and normal tensors separately.
        ids, positions = self._ids_B[:size].copy_(ids_B), self._positions_B[:size].copy_(positions_B)
        slots_L = self._slots_L[: max(length, _SHORTEST)]
        torch._dynamo.mark_dynamic(slots_L, 0)
        rows = self._cache.rows(0, size)
        return self._step(ids, positions, slots_L, rows.keys, rows.values)


def _prepared(model: TransformerLM, *, int8: bool) -> TransformerLM:
    """Return a copy to compile, which shares its weights except those that are rounded."""
    on_cpu = model.token_embeddings.weight.device.type == "cpu"
    copied = with_int8_weights(model) if int8 else for_few_rows(model) if on_cpu else _sharing_copy(model)
    for block in blocks_of(copied):
        block.attn.attend = attend_from_one if on_cpu else block.attn.attend
        block.attn.rotate = rotate_pairs
    return copied


def attend_from_one(
    q_BH1K: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attend from one token per row, written as sums, which the compiler fuses into loops over keys and values."""
    assert not is_causal
    q_BGRK = q_BH1K.squeeze(-2).unflatten(1, (k_BGSK.shape[1], -1))  # R query heads share a key-value head
    scores_BGRS = (q_BGRK.unsqueeze(-2) * k_BGSK.unsqueeze(-3)).sum(dim=-1) / math.sqrt(q_BGRK.shape[-1])
    if mask is not None:
        scores_BGRS = scores_BGRS.masked_fill(~mask, -math.inf)
    weights_BGRS = at_least_float32(scores_BGRS).softmax(dim=-1).to(v_BGSK.dtype)
    return (weights_BGRS.unsqueeze(-1) * v_BGSK.unsqueeze(-3)).sum(dim=-2).flatten(1, 2).unsqueeze(-2)


def _compiled(model: TransformerLM) -> Callable[..., Tensor]:
    def step(ids_B: Tensor, positions_B: Tensor, slots_L: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        cache = KVCache.of(keys, values, length=slots_L.shape[0] - 1)
        ids_B1, positions_B1 = ids_B.unsqueeze(1), positions_B.unsqueeze(1)
        rotation = model.rope.cos[positions_B1], model.rope.sin[positions_B1]
        features_B1D = model.run_blocks(ids_B1, rotation, cache.layers(ids_B1.shape, positions_B1))
        return model.logits(features_B1D)[:, -1]

    # Dynamo caches compiled code by code object: a code object per step keeps two models apart. This model no
    # longer changes, so its modules need no guards.
    own = types.FunctionType(step.__code__.replace(), step.__globals__, closure=step.__closure__)
    options: Any = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


def with_int8_weights(model: TransformerLM) -> TransformerLM:
    """Return a copy whose matrices are rounded to bytes; all other parameters are shared.

    A tied model's output projection is rounded, its embeddings are not: they are looked up, not multiplied.
    """
    copied = _sharing_copy(model)
    for block in blocks_of(copied):
        for part, names in (
            (block.attn, ("q_proj", "k_proj", "v_proj", "output_proj")),
            (block.ffn, ("w1", "w3", "w2")),
        ):
            if not all(isinstance(getattr(part, name, None), Linear) for name in names):
                raise ConfigError(
                    f"int8 weights are for the layers of this project, and {type(part).__name__} lacks the matrices "
                    f"{', '.join(names)}; teach with_int8_weights the layer, or go without int8"
                )
        block.attn = _Int8Attention(block.attn)
        block.ffn = _Int8SwiGLU(block.ffn)  # type: ignore[assignment]
    copied.lm_head = Int8Linear(model.output_weight)  # type: ignore[assignment]
    return copied


def _sharing_copy(model: TransformerLM) -> TransformerLM:
    """Return a copy of the modules, with the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def for_few_rows(model: TransformerLM) -> TransformerLM:
    """Return a copy of a model on a CPU, with the same weights, that is faster for few rows of one token."""
    copied = _sharing_copy(model)
    copied.lm_head = FewRowsLinear(model.output_weight)  # type: ignore[assignment]
    for name, module in list(copied.named_modules()):
        if isinstance(module, Linear):
            copied.set_submodule(name, FewRowsLinear(module.weight, module.bias))
    return copied


def eager_is_slow_for_few_rows(weight: Tensor) -> bool:
    """Whether `for_few_rows` makes eager steps of a model with such weights faster."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _is_mkl_on_amd()


@cache
def _is_mkl_on_amd() -> bool:
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux, or not to be read
        return False
    return torch.backends.mkl.is_available() and "AuthenticAMD" in processor


@final
class FewRowsLinear(nn.Module):
    """`y = W x + b` for few rows: compiled, as sums; in eager mode, a product for each thread."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Share `weight` (out, in) and `bias` (out,)."""
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows_NI = x.flatten(0, -2)
        is_compiling = torch.compiler.is_compiling()
        if len(rows_NI) > (_ROWS_TOGETHER if is_compiling else _FEW_ROWS):
            return nn.functional.linear(x, self.weight, self.bias)
        if is_compiling:
            y_NO = _sums(at_least_float32(rows_NI), self.weight).to(x.dtype)
        else:
            parts = math.gcd(torch.get_num_threads(), len(self.weight))
            shares_PSI = self.weight.unflatten(0, (parts, -1))
            y_NO = torch.bmm(shares_PSI, rows_NI.T.expand(parts, -1, -1)).flatten(0, 1).T
        if self.bias is not None:
            y_NO = y_NO + self.bias
        return y_NO.unflatten(0, x.shape[:-1])


def _sums(rows_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the products (N, O) of rows and weights, written as sums, in the type of the rows."""
    # as_strided makes Inductor materialise `rows` once instead of recomputing it for each output.
    rows_NI = rows_NI.as_strided(rows_NI.shape, (rows_NI.shape[1], 1))
    products = []
    for some_NI in rows_NI.split(_ROWS_TOGETHER):
        wide_OI = weight_OI.to(rows_NI.dtype)
        products += [(row_I * wide_OI).sum(dim=-1) for row_I in some_NI.unbind(0)]
    return torch.stack(products)


@final
class Int8Linear(nn.Module):
    """`y = W x + b` with W = diag(scale) · bytes, each scale a 127th of its row's largest weight."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    _ones: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Round `weight` (out, in), of any floating type; `bias` (out,), if any, is taken as it is."""
        super().__init__()
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        wide = weight.detach().to(torch.float32)
        scale = (wide.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self._padding = -weight.shape[1] % _COLUMNS_TOGETHER
        bytes_OI = nn.functional.pad((wide / scale.unsqueeze(1)).round().to(torch.int8), (0, self._padding))
        self.register_buffer("weight", bytes_OI, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("_ones", torch.ones_like(scale, dtype=torch.bfloat16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out) without materialising the widened weights."""
        rows_NI = x.flatten(0, -2)
        if self._padding:
            rows_NI = nn.functional.pad(rows_NI, (0, self._padding))
        if torch.compiler.is_compiling():
            products_NO = _sums(rows_NI.to(torch.float32), self.weight)
        else:  # the scales are applied outside: in bfloat16 each would be wrong by up to 0.2 %, for all rows
            products_NO = torch.ops.aten._weight_int8pack_mm(rows_NI.to(torch.bfloat16), self.weight, self._ones)
        y_NO = products_NO * self.scale
        if self.bias is not None:
            y_NO = y_NO + self.bias
        return y_NO.to(x.dtype).unflatten(0, x.shape[:-1])


@final
class _Int8Attention(SelfAttention):
    """Attention with rounded weights; one matrix for queries, keys and values."""

    def __init__(self, attn: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.d_head, self.num_heads, self.num_kv_heads = attn.d_head, attn.num_heads, attn.num_kv_heads
        self.q_norm, self.k_norm = attn.q_norm, attn.k_norm
        self.attend, self.rotate = attn.attend, attn.rotate
        self.qkv_proj = _joined([attn.q_proj, attn.k_proj, attn.v_proj])
        self.output_proj = Int8Linear(attn.output_proj.weight)  # type: ignore[assignment]

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_kv = self.num_kv_heads * self.d_head
        return self.qkv_proj(x_BTD).split((self.num_heads * self.d_head, d_kv, d_kv), dim=-1)


@final
class _Int8SwiGLU(nn.Module):
    """SwiGLU with rounded weights; one matrix for gate and up."""

    def __init__(self, ffn: SwiGLU) -> None:
        super().__init__()
        self.gate_and_up = _joined([ffn.w1, ffn.w3])
        self.w2 = Int8Linear(ffn.w2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.w2(nn.functional.silu(gate) * up)


def _joined(layers: Sequence[Linear]) -> Int8Linear:
    """Return linear maps of the same input as one."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return Int8Linear(torch.cat(weights), torch.cat(biases) if biases else None)
