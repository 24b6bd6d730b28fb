"""The key-value cache: what attention needs of the tokens before, kept between forward passes.

One rule makes it simple: **the slot in the cache is the token's position**. A query at position p
attends to the slots 0 … p and no others. So rows of one batch may have different lengths: pad on the
right and start every row at 0; a padding token's slot lies after the row's last real token, is never
attended to, and is overwritten when the row grows into it.

The cache knows one number on the host, `length`: no slot at or after it matters. A forward of T tokens
reads and writes the slots before `length + T` only, and then adds T; so no step waits for the device to
learn where it is. Setting `length` back forgets the tokens after it.

Shapes: B rows, G key-value heads, T new tokens, L slots, K head size.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from transformerlm.utils.errors import ConfigError


@dataclass(frozen=True)
class LayerCache:
    """One layer's slots, (B, G, max_len, K), during one forward, and who may attend to which of the first `end`."""

    keys: Tensor
    values: Tensor
    start: int
    end: int
    token_positions: Tensor | None
    attn_mask: Tensor | None
    is_causal: bool

    def update(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values at their positions; return those of the first `end` slots."""
        if k_BGTK.requires_grad:
            raise ConfigError("a key-value cache is for inference only: call the model under torch.no_grad()")
        for slots, new in ((self.keys, k_BGTK), (self.values, v_BGTK)):
            if self.token_positions is None:
                slots[:, :, self.start : self.end] = new
            else:
                rows_B1 = torch.arange(len(new), device=new.device).unsqueeze(1)
                slots[rows_B1, :, self.token_positions] = new.transpose(1, 2).to(slots.dtype)
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


class KVCache:
    """Preallocated keys and values of every layer, each of shape (B, G, max_len, K)."""

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_len: int,
        d_head: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch_size, num_kv_heads, max_len, d_head)
        # Zeros, not empty: a masked slot has weight 0, and 0 times a stray NaN would be NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(num_layers)]
        self.batch_size = batch_size
        self.max_len = max_len
        self.length = 0

    def rows(self, begin: int, end: int) -> "KVCache":
        """Return some rows as a cache of their own, with nothing in use; what is written to it is written here."""
        part = copy.copy(self)
        part.keys = [keys[begin:end] for keys in self.keys]
        part.values = [values[begin:end] for values in self.values]
        part.batch_size = end - begin
        part.length = 0
        return part

    def layers(self, shape_BT: torch.Size, token_positions: Tensor | None = None) -> list[LayerCache]:
        """Return each layer's slots for a forward of ids of shape (B, T).

        `token_positions`, of shape (T,) or (B, T), must be below `length + T`; by default the tokens
        follow the slots in use. Raises `ConfigError` if they do not fit into the cache.
        """
        if len(shape_BT) != 2:
            raise ConfigError(f"with a cache the ids must have shape (batch, tokens) (got {tuple(shape_BT)})")
        batch_size, num_tokens = shape_BT
        start, end = self.length, self.length + num_tokens
        if batch_size != self.batch_size:
            raise ConfigError(f"the cache has {self.batch_size} rows, the batch {batch_size}; make a new cache")
        if end > self.max_len:
            raise ConfigError(
                f"the cache has {self.max_len} slots, of which {start} are in use: {num_tokens} more tokens "
                "do not fit; make a longer cache or shorten the input"
            )
        is_causal = token_positions is None and start == 0
        mask = None if is_causal else self._mask(num_tokens, token_positions)
        if token_positions is not None:
            token_positions = token_positions.expand(batch_size, num_tokens)
        return [
            LayerCache(keys, values, start, end, token_positions, mask, is_causal)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def _mask(self, num_tokens: int, token_positions: Tensor | None) -> Tensor | None:
        """Return `slot <= position` as (T, L) or (B, 1, T, L); None where every slot may be attended to."""
        if token_positions is None and num_tokens == 1:
            return None
        slots_L = torch.arange(self.length + num_tokens, device=self.keys[0].device)
        positions = slots_L[self.length :] if token_positions is None else token_positions
        mask = slots_L <= positions.unsqueeze(-1)
        return mask.unsqueeze(1) if mask.ndim == 3 else mask
