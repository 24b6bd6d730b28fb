"""The layers a Transformer block is made of: linear map, embedding, RMS norm, SwiGLU, rotary positions.

Every layer draws its weights when it is built, and again, from an explicit generator, in
`reset_parameters`. Sizes are checked where they are used; a wrong one raises `ConfigError`.

Shapes: `...` any leading dimensions, T positions, P = d_k / 2 rotated pairs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from transformerlm.hparams import RopeScaling
from transformerlm.models.rope_scaling import scaled_frequencies
from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError

# A normal distribution of standard deviation c, cut off at ±3, has standard deviation 1 for this c
# (the cut removes the tails, so c is slightly above 1; solved from the variance of a truncated normal).
_PARENT_STD = 1.0153869850528114
_CUTOFF = 3.0


def require_positive(**sizes: int) -> None:
    """Raise `ConfigError` naming the first of `sizes` that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1 (got {size})")


@torch.no_grad()
def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill `tensor` with normal values cut off at ±3 `std`, of which the standard deviation is `std`.

    Drawn in float32 by inverting the cumulative distribution, on the generator's device if one is given:
    the same seed gives the same weights on every device, in lower precision merely rounded. On the meta device,
    which has no values, nothing is drawn.
    """
    if tensor.is_meta:
        return tensor
    device = tensor.device if generator is None else generator.device
    bound = math.erf(_CUTOFF / _PARENT_STD / math.sqrt(2))
    draw = torch.empty(tensor.shape, dtype=torch.float32, device=device)
    draw.uniform_(-bound, bound, generator=generator)
    draw.erfinv_().mul_(math.sqrt(2) * _PARENT_STD * std).clamp_(-_CUTOFF * std, _CUTOFF * std)
    return tensor.copy_(draw)


class Linear(nn.Module):
    """`y = W x`, or `y = W x + b` with `bias`; `weight` has shape (out_features, in_features)."""

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
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        """Draw the weights with variance 2 / (in + out) (Glorot & Bengio 2010), times `scale` squared; no bias yet."""
        std = scale * math.sqrt(2 / (self.in_features + self.out_features))
        truncated_normal_(self.weight, std, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return nn.functional.linear(x, self.weight, self.bias)

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
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None, std: float = 1.0) -> None:
        """Draw the vectors with standard deviation `std`."""
        truncated_normal_(self.weight, std, generator)

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
        self.d_model = d_model
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every gain to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d_model) to root mean square one, times the gains."""
        wide = at_least_float32(x)
        inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * inverse_rms * self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.d_model}, eps={self.eps}"


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

    def reset_parameters(self, generator: torch.Generator | None = None, residual_scale: float = 1.0) -> None:
        """Draw all weights; `w2`, which writes to the residual stream, times `residual_scale`."""
        self.w1.reset_parameters(generator)
        self.w2.reset_parameters(generator, residual_scale)
        self.w3.reset_parameters(generator)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gate and up, each (..., d_ff), of (..., d_model)."""
        return self.w1(x), self.w3(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        gate, up = self.project(x)
        return self.w2(nn.functional.silu(gate) * up)


class RotaryPositionalEmbedding(nn.Module):
    """Rotate pair i of the vector at position m by m · theta^(-2i / d_k) (Su et al. 2021, RoFormer, eq. 34).

    A pair is two neighbours, (x[2i], x[2i + 1]). The cosines and sines are float32 tables that are not
    saved with the model; being functions of the sizes alone they are computed again when the module moves to
    another device and kept otherwise, so neither `model.to(torch.bfloat16)` nor `to_empty` after the meta device
    can spoil them.

    `scaling` and the numbers that follow slow the rotation, for contexts longer than those of the first training: see
    `rope_scaling.scaled_frequencies`.
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
        scaling: RopeScaling | None = None,
        factor: float | None = None,
        low_freq_factor: float | None = None,
        high_freq_factor: float | None = None,
        original_context: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(d_k=d_k, max_seq_len=max_seq_len)
        if d_k % 2:
            raise ConfigError(f"rotary positions need an even head size (got d_k = {d_k})")
        if not theta > 0:
            raise ConfigError(f"rope theta must be positive (got {theta}); 10000 is usual")
        self.theta = theta
        self.d_k = d_k
        self.max_seq_len = max_seq_len
        self.scaling: RopeScaling | None = scaling
        self.factor = factor
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor
        self.original_context = original_context
        self._build_tables(device)

    def _build_tables(self, device: torch.device | str | None) -> None:
        size = self.max_seq_len, self.d_k // 2
        cos_TP, sin_TP = (torch.empty(size, device=device, dtype=torch.float32) for _ in range(2))
        # Arithmetic on the meta device would load torch's compiler, for seconds, and give nothing.
        device = "cpu" if cos_TP.is_meta else cos_TP.device
        exponents_P = torch.arange(0, self.d_k, 2, device=device, dtype=torch.float32) / self.d_k
        frequencies_P = scaled_frequencies(
            self.theta**-exponents_P,
            self.scaling,
            factor=self.factor,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
            original_context=self.original_context,
        )
        if not cos_TP.is_meta:
            positions_T = torch.arange(self.max_seq_len, device=device, dtype=torch.float32)
            angles_TP = torch.outer(positions_T, frequencies_P)
            torch.cos(angles_TP, out=cos_TP)
            torch.sin(angles_TP, out=sin_TP)
        self.register_buffer("cos", cos_TP, persistent=False)
        self.register_buffer("sin", sin_TP, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryPositionalEmbedding":  # noqa: ARG002
        device = fn(self.cos.new_empty(0)).device
        # The layers of a model share one embedding, and each of them comes here: its tables are built once.
        if device != self.cos.device:
            self._build_tables(device)
        return self

    def rows(self, num_positions: int, token_positions: Tensor | None = None, start: int = 0) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of `num_positions` positions, for `rotate_pairs`.

        Without `token_positions` (integers, shape (..., T)) the positions are `start`, `start` + 1, …,
        and the rows are views of the tables. Raises `ConfigError` for positions past the tables' end;
        explicit ones are looked at only where that costs no synchronisation, on the CPU.
        """
        if token_positions is None:
            end = start + num_positions
            if end > self.max_seq_len:
                raise ConfigError(f"{end} positions asked for, but the model has {self.max_seq_len}; shorten the input")
            return self.cos[start:end], self.sin[start:end]
        if token_positions.device.type == "cpu" and not torch.compiler.is_compiling():
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
        scaling = "" if self.scaling is None else f", scaling={self.scaling} by {self.factor}"
        return f"theta={self.theta}, d_k={self.d_k}, max_seq_len={self.max_seq_len}{scaling}"


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i + 1]) of (..., d_k) by the angle whose cosine and sine are given (..., P).

    As in the RoFormer paper: a pair is a complex number, multiplied by e^{i·angle}. In eager mode that one
    product is about four times faster than the real form, which `torch.compile` needs instead, since it
    fuses real arithmetic only.
    """
    pairs = at_least_float32(x).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:
        product = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
        rotated = torch.view_as_real(product)
    return rotated.flatten(-2).to(x.dtype)
