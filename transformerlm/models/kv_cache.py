"""The key-value cache: keys and values of earlier tokens, kept between forward passes.

One rule makes it simple: **the slot in the cache is the token's position**. A query at position p
attends to the slots 0 … p only. So rows of one batch may have different lengths: pad on the right and
start every row at 0. The slots of padding tokens come after the row's last real token; they are never
attended to, and are overwritten when the row grows into them.

The host keeps one number, `length`: slots from there on are unused. A forward pass of T tokens reads and
writes only the slots before `length + T`, and then adds T; so no step needs a host–device sync. Reducing
`length` discards the tokens after it.

Shapes: B rows, G key-value heads, T new tokens, L slots, K head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from transformerlm.utils.errors import ConfigError


@dataclass(frozen=True)
class LayerCache:
    """One layer's slots, (B, G, max_len + 1, K), during one forward pass, and the mask for the first `end` of them."""

    keys: Tensor
    values: Tensor
    start: int
    end: int
    token_positions: Tensor | None
    attn_mask: Tensor | None
    is_causal: bool

    def update(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values at their positions; return the first `end` slots of both."""
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
    """Preallocated keys and values of every layer, each of shape (B, G, max_len + 1, K)."""

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
        # One spare slot, so the slots in use are never the whole buffer (torch.compile would recompile for that).
        shape = (batch_size, num_kv_heads, max_len + 1, d_head)
        # Zeros, not empty: a masked slot has weight 0, and 0 times a stray NaN would be NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(num_layers)]
        self.batch_size = batch_size
        self.max_len = max_len
        self.length = 0

    @classmethod
    def of(cls, keys: list[Tensor], values: list[Tensor], *, length: int) -> "KVCache":
        """Return a cache over tensors of that shape, with the first `length` slots in use."""
        cache = object.__new__(cls)
        cache.keys, cache.values, cache.length = keys, values, length
        cache.batch_size, cache.max_len = keys[0].shape[0], keys[0].shape[2] - 1
        return cache

    def rows(self, begin: int, end: int) -> "KVCache":
        """Return some rows as an empty cache that shares the memory of this one."""
        keys, values = ([slots[begin:end] for slots in part] for part in (self.keys, self.values))
        return KVCache.of(keys, values, length=0)

    def layers(self, shape_BT: torch.Size, token_positions: Tensor | None = None) -> list[LayerCache]:
        """Return each layer's slots for a forward pass of ids of shape (B, T).

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
        """Return `slot <= position` as (T, L) or (B, 1, T, L); None if every slot may be attended to."""
        if token_positions is None and num_tokens == 1:
            return None
        slots_L = torch.arange(self.length + num_tokens, device=self.keys[0].device)
        positions = slots_L[self.length :] if token_positions is None else token_positions
        mask = slots_L <= positions.unsqueeze(-1)
        return mask.unsqueeze(1) if mask.ndim == 3 else mask
