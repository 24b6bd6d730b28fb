"""The decoder-only Transformer language model: token ids in, logits of the next token out.

Pre-norm blocks as in LLaMA (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, and no biases except the
optional ones of queries, keys and values. The same `forward` trains and decodes; the key-value cache is an argument.

Shapes: B rows, T tokens, D = d_model, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transformerlm.hparams import ModelHparams
from transformerlm.models.attention import AttentionMask, Rotation, SelfAttention
from transformerlm.models.kv_cache import KVCache, LayerCache
from transformerlm.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    RotaryPositionalEmbedding,
    SwiGLU,
    init_weights,
    require_positive,
    rotary_frequencies,
)
from transformerlm.models.rope_scaling import scaled_frequencies
from transformerlm.utils.errors import ConfigError


class Block(nn.Module):
    """`x + attn(ln1(x))`, then `x + ffn(ln2(x))`: the pre-norm block (Xiong et al. 2020)."""

    def __init__(
        self, settings: ModelHparams, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.ln1 = RMSNorm(settings.d_model, settings.norm_eps, device=device, dtype=dtype)
        self.attn = SelfAttention(settings, device=device, dtype=dtype)
        self.ln2 = RMSNorm(settings.d_model, settings.norm_eps, device=device, dtype=dtype)
        self.ffn = SwiGLU(settings.d_model, settings.d_ff, device=device, dtype=dtype)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, cache: LayerCache | None = None, mask: AttentionMask | None = None
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D); for the arguments see `SelfAttention.forward`."""
        x_BTD = x_BTD + self.attn(self.ln1(x_BTD), rotation, cache, mask)
        return x_BTD + self.ffn(self.ln2(x_BTD))


class TransformerLM(nn.Module):
    """A stack of `Block`s between a token embedding and a projection to the vocabulary.

    `options` are the other fields of `ModelHparams`: `num_kv_heads`, `qk_norm`, `qkv_bias`, `head_size`, `norm_eps`,
    `rope_scaling` and its numbers, and `tie_embeddings`, with which the embedding table serves as the output projection
    too (Press & Wolf 2017). A tied model has no `lm_head` (it is None) and no `lm_head.weight` in its state: one
    parameter stays one parameter when it is moved, sharded or saved.

    Weights are stored in `dtype` (float32 by default). Matrix products run in the type of the activations: the type of
    the weights unless `compute_dtype` is set.

    Raises `ConfigError` for settings that are out of range or do not fit together.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        d_ff: int,
        rope_theta: float = 10000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.settings = settings = ModelHparams.checked(
            vocab_size=vocab_size,
            context_length=context_length,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff,
            rope_theta=rope_theta,
            **options,
        )
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.compute_dtype: torch.dtype | None = None
        frequencies = scaled_frequencies(rotary_frequencies(rope_theta, settings.d_head), settings)
        self.rope = RotaryPositionalEmbedding(
            rope_theta, settings.d_head, context_length, device="meta", frequencies=frequencies
        )
        self.token_embeddings = Embedding(vocab_size, d_model, device="meta", dtype=dtype)
        self.layers = nn.ModuleList(Block(settings, device="meta", dtype=dtype) for _ in range(num_layers))
        self.ln_final = RMSNorm(d_model, settings.norm_eps, device="meta", dtype=dtype)
        self.lm_head = None if settings.tie_embeddings else Linear(d_model, vocab_size, device="meta", dtype=dtype)
        self.materialise(device)
        self.init_weights()

    def materialise(self, device: torch.device | str | None = None) -> None:
        """Allocate the weights on `device`, uninitialised, if they are on the meta device."""
        # `to_empty` would do, but loads sympy, which takes half a second.
        self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise every weight, from `generator` if given (else from torch's global one).

        Matrices that write to the residual stream are divided by sqrt(2 · num_layers), so that the variance of the
        stream does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Embeddings have variance 1, the scale
        of the blocks' outputs. Tied embeddings have variance 1 / d_model, so that the first logits, their products with
        features of variance 1, have variance 1 as well.
        """
        tied_std = self.settings.d_model**-0.5
        init_weights(
            self,
            generator,
            embedding_std=tied_std if self.lm_head is None else 1.0,
            residual_scale=1 / math.sqrt(2 * len(self.layers)),
        )

    def forward(
        self,
        in_indices_BT: Tensor,
        token_positions: Tensor | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Return the logits (B, T, V) of the token that follows each of the ids (B, T).

        For the arguments see `hidden_states`.
        """
        return self.logits(self.hidden_states(in_indices_BT, token_positions, cache, mask))

    def hidden_states(
        self,
        in_indices_BT: Tensor,
        token_positions: Tensor | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Return the features (B, T, D) after the final norm, from which `logits` are computed.

        `token_positions`, (T,) or (B, T), default to 0, 1, …, or with a cache to the positions after the slots in use;
        `kv_cache` says which positions are allowed there. `mask`, boolean of shape (T, T) or (B, 1, T, T), replaces the
        causal mask; True means "attend". Raises `ConfigError` for more than `context_length` positions, and for a mask
        together with a cache, which has its own.
        """
        if mask is not None and cache is not None:
            raise ConfigError("a mask cannot be given with a key-value cache, which determines who attends to what")
        start = 0 if cache is None else cache.length
        rotation = self.rope.rows(in_indices_BT.shape[-1], token_positions, start)
        if cache is None:
            return self.run_blocks(in_indices_BT, rotation, [None] * len(self.layers), mask)
        features_BTD = self.run_blocks(in_indices_BT, rotation, cache.layers(in_indices_BT.shape, token_positions))
        cache.length += in_indices_BT.shape[-1]
        return features_BTD

    def run_blocks(
        self,
        in_indices_BT: Tensor,
        rotation: Rotation,
        layer_caches: Sequence[LayerCache | None],
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Embed the ids (B, T), apply every block and the final norm: (B, T, D)."""
        x_BTD = self.token_embeddings(in_indices_BT)
        x_BTD = x_BTD if self.compute_dtype is None else x_BTD.to(self.compute_dtype)
        for layer, layer_cache in zip(self.layers, layer_caches, strict=True):
            x_BTD = layer(x_BTD, rotation, layer_cache, mask)
        return self.ln_final(x_BTD)

    def logits(self, features: Tensor) -> Tensor:
        """Project features (..., D) to the vocabulary, (..., V)."""
        if self.lm_head is None:
            return nn.functional.linear(features, self.token_embeddings.weight.to(features.dtype))
        return self.lm_head(features)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) of `logits`."""
        return self.token_embeddings.weight if self.lm_head is None else self.lm_head.weight

    def new_cache(self, batch_size: int, max_len: int | None = None) -> KVCache:
        """Return an empty key-value cache for this model, of `max_len` slots (default: the context)."""
        max_len = self.context_length if max_len is None else max_len
        require_positive(batch_size=batch_size, max_len=max_len)
        if max_len > self.context_length:
            raise ConfigError(f"max_len {max_len} exceeds the model's context length {self.context_length}")
        weight = self.token_embeddings.weight
        return KVCache(
            num_layers=len(self.layers),
            batch_size=batch_size,
            num_kv_heads=self.settings.num_kv_heads,
            max_len=max_len,
            d_head=self.settings.d_head,
            device=weight.device,
            dtype=self.compute_dtype or weight.dtype,
        )
