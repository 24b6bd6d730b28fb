"""The layers of a Transformer block: linear map, embedding, RMS norm, SwiGLU, rotary positions.

Shapes: `...` any leading dimensions, T positions, P = d_k / 2 rotated pairs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError


def require_positive(**sizes: int) -> None:
    """Raise `ConfigError` naming the first of `sizes` that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1 (got {size})")


class Linear(nn.Module):
    """`y = W x`, or `y = W x + b` with `bias`; `weight` has shape (out_features, in_features).

    The weight is rounded to the type of `x`, in which the product is computed. Autograd sees the rounding, so the
    gradient has the type of the weight: float32 weights can be trained with bfloat16 products.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        require_positive(in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + ", bias=True" * (self.bias is not None)


class Embedding(nn.Module):
    """A table of one vector per id; `weight` has shape (num_embeddings, embedding_dim)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        init_weights(self)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look up (...) integer ids: (..., embedding_dim)."""
        return nn.functional.embedding(token_ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension (Zhang & Sennrich 2019, eq. 4).

    Computed in float32; the result has the type of the input.
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(d_model=d_model)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., d_model) to root mean square one, then multiply by the gains."""
        wide = at_least_float32(x)
        inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * inverse_rms * self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class SwiGLU(nn.Module):
    """`w2(silu(w1 x) * w3 x)`: the gated feed-forward network of Shazeer 2020, "GLU Variants", eq. 6."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)  # gate
        self.w2 = Linear(d_ff, d_model, device=device, dtype=dtype)  # down
        self.w3 = Linear(d_model, d_ff, device=device, dtype=dtype)  # up

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class RotaryPositionalEmbedding(nn.Module):
    """Rotate pair i of the vector at position m by m · theta^(-2i / d_k) (Su et al. 2021, RoFormer, eq. 34).

    A pair is two neighbours, (x[2i], x[2i + 1]). `frequencies` (P,), in radians per position, replaces the powers of
    `theta`; `rope_scaling` computes frequencies for contexts longer than the original one.

    The cosines and sines are float32 tables that are not saved with the model. They are recomputed whenever the
    module moves, so they stay correct after `model.to(torch.bfloat16)` and `to_empty`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        theta: float,
        d_k: int,
        max_seq_len: int,
        device: torch.device | str | None = None,
        *,
        frequencies: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_positive(max_seq_len=max_seq_len)
        self.theta = theta
        self.d_k = d_k
        self.max_seq_len = max_seq_len
        self.frequencies = rotary_frequencies(theta, d_k) if frequencies is None else frequencies
        self._build_tables(device)

    def _build_tables(self, device: torch.device | str | None) -> None:
        size = self.max_seq_len, self.d_k // 2
        cos_TP, sin_TP = (torch.empty(size, device=device, dtype=torch.float32) for _ in range(2))
        if not cos_TP.is_meta:  # arithmetic on the meta device would load torch's compiler, which takes seconds
            positions_T = torch.arange(self.max_seq_len, device=cos_TP.device, dtype=torch.float32)
            angles_TP = torch.outer(positions_T, self.frequencies.to(cos_TP.device))
            torch.cos(angles_TP, out=cos_TP)
            torch.sin(angles_TP, out=sin_TP)
        self.register_buffer("cos", cos_TP, persistent=False)
        self.register_buffer("sin", sin_TP, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryPositionalEmbedding":  # noqa: ARG002
        device = fn(self.cos.new_empty(0)).device
        # The layers of a model share one embedding, and each of them calls this: the tables are built once.
        if device != self.cos.device:
            self._build_tables(device)
        return self

    def rows(self, num_positions: int, token_positions: Tensor | None = None, start: int = 0) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of `num_positions` positions, for `rotate_pairs`.

        Without `token_positions` (integers, shape (..., T)) the positions are `start`, `start` + 1, …, and the rows
        are views of the tables. Raises `ConfigError` for positions past the end of the tables; `token_positions` are
        checked on the CPU only, since on another device it would take a host–device sync.
        """
        if token_positions is None:
            end = start + num_positions
            if end > self.max_seq_len:
                raise ConfigError(f"{end} positions asked for, but the model has {self.max_seq_len}; shorten the input")
            return self.cos[start:end], self.sin[start:end]
        if token_positions.device.type == "cpu":
            self._check_range(token_positions)
        return self.cos[token_positions], self.sin[token_positions]

    def _check_range(self, token_positions: Tensor) -> None:
        if token_positions.numel() == 0:
            return
        low, high = (int(bound) for bound in token_positions.aminmax())
        if low < 0 or high >= self.max_seq_len:
            raise ConfigError(f"token positions {low} to {high} do not fit the model's 0 to {self.max_seq_len - 1}")

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """Rotate `x` (..., T, d_k) by its positions (T,) or (..., T), by default 0, 1, … T − 1."""
        return rotate_pairs(x, *self.rows(x.shape[-2], token_positions))

    def extra_repr(self) -> str:
        return f"theta={self.theta}, d_k={self.d_k}, max_seq_len={self.max_seq_len}"


def rotary_frequencies(theta: float, d_k: int) -> Tensor:
    """Return theta^(-2i / d_k) for each pair i: (P,), float32, on the CPU."""
    require_positive(d_k=d_k)
    if d_k % 2:
        raise ConfigError(f"rotary positions need an even head size (got d_k = {d_k})")
    if not theta > 0:
        raise ConfigError(f"rope theta must be positive (got {theta}); 10000 is usual")
    return theta ** -(torch.arange(0, d_k, 2, device="cpu", dtype=torch.float32) / d_k)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[2i], x[2i + 1]) of (..., d_k) by the angle whose cosine and sine (..., P) are given."""
    even, odd = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def init_weights(
    module: nn.Module,
    generator: torch.Generator | None = None,
    *,
    embedding_std: float = 1.0,
    residual_scale: float = 1.0,
) -> None:
    """Initialise every weight in `module`, in place: all initialisation happens here.

    Matrices are drawn from a normal distribution of variance 2 / (in + out) (Glorot & Bengio 2010, eq. 16), cut off at
    three standard deviations, and those that write to the residual stream (`attn.output_proj`, `ffn.w2`) are multiplied
    by `residual_scale`. Embeddings have standard deviation `embedding_std`, gains are one, biases zero. The weights are
    a function of `generator`, or of torch's global one.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, Linear):
            std = math.sqrt(2 / (layer.in_features + layer.out_features))
            is_residual = name.endswith((".output_proj", ".w2"))
            truncated_normal_(layer.weight, std * residual_scale if is_residual else std, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, Embedding):
            truncated_normal_(layer.weight, embedding_std, generator)
        elif isinstance(layer, RMSNorm):
            nn.init.ones_(layer.weight)


# A normal distribution of standard deviation c, cut off at ±3, has standard deviation 1 for this c
# (the cut removes the tails, so c is slightly above 1; solved from the variance of a truncated normal).
_PARENT_STD = 1.0153869850528114
_CUTOFF = 3.0


@torch.no_grad()
def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill `tensor` with normal values cut off at ±3 `std`, whose standard deviation is `std` after the cut.

    They are drawn in float32 by inverting the cumulative distribution, on the generator's device if one is given:
    the same seed gives the same weights on every device, merely rounded in lower precision. A tensor on the meta
    device has no values and is left alone.
    """
    if tensor.is_meta:
        return tensor
    device = tensor.device if generator is None else generator.device
    bound = math.erf(_CUTOFF / _PARENT_STD / math.sqrt(2))
    draw = torch.empty(tensor.shape, dtype=torch.float32, device=device)
    draw.uniform_(-bound, bound, generator=generator)
    draw.erfinv_().mul_(math.sqrt(2) * _PARENT_STD * std).clamp_(-_CUTOFF * std, _CUTOFF * std)
    return tensor.copy_(draw)
