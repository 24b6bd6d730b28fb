"""The decoder-only Transformer language model: token ids in, logits of the next token out.

Pre-norm blocks as in LLaMA (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, no biases but for
those of queries, keys and values where they are asked for. The same
`forward` trains and decodes; the key-value cache is an argument. Nothing here chooses a device, compiles,
casts or prints.

Shapes: B rows, T tokens, D = d_model, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from transformerlm.hparams import RopeScaling
from transformerlm.models.attention import AttentionMask, MultiheadSelfAttentionRoPE, checked_head_size
from transformerlm.models.kv_cache import KVCache, LayerCache
from transformerlm.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    RotaryPositionalEmbedding,
    SwiGLU,
    require_positive,
)
from transformerlm.utils.errors import ConfigError


class TransformerBlock(nn.Module):
    """`x + attn(ln1(x))`, then `x + ffn(ln2(x))`: the pre-norm block (Xiong et al. 2020)."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        max_seq_len: int,
        theta: float,
        *,
        num_kv_heads: int | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        head_size: int | None = None,
        norm_eps: float = 1e-5,
        rope: RotaryPositionalEmbedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.ln1 = RMSNorm(d_model, norm_eps, device=device, dtype=dtype)
        self.attn = MultiheadSelfAttentionRoPE(
            d_model,
            num_heads,
            max_seq_len,
            theta,
            num_kv_heads=num_kv_heads,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            head_size=head_size,
            norm_eps=norm_eps,
            rope=rope,
            device=device,
            dtype=dtype,
        )
        self.ln2 = RMSNorm(d_model, norm_eps, device=device, dtype=dtype)
        self.ffn = SwiGLU(d_model, d_ff, device=device, dtype=dtype)

    def reset_parameters(self, generator: torch.Generator | None = None, residual_scale: float = 1.0) -> None:
        """Draw all weights; those that write to the residual stream times `residual_scale`."""
        self.ln1.reset_parameters()
        self.attn.reset_parameters(generator, residual_scale)
        self.ln2.reset_parameters()
        self.ffn.reset_parameters(generator, residual_scale)

    def forward(
        self,
        x_BTD: Tensor,
        token_positions: Tensor | None = None,
        cache: LayerCache | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D); arguments as of `MultiheadSelfAttentionRoPE.forward`."""
        x_BTD = x_BTD + self.attn(self.ln1(x_BTD), token_positions, cache, mask)
        return x_BTD + self.ffn(self.ln2(x_BTD))


class TransformerLM(nn.Module):
    """A stack of `TransformerBlock`s between a token embedding and a projection to the vocabulary.

    Options: `num_kv_heads` for grouped-query attention, `qk_norm`, `qkv_bias` and `head_size` as of
    `MultiheadSelfAttentionRoPE`; `rope_scaling` and its numbers as of `RotaryPositionalEmbedding`; and
    `tie_embeddings`, with which the embedding table serves as the output projection too (Press & Wolf 2017).
    A tied model has no `lm_head` (it is None) and no `lm_head.weight` in its state: one parameter stays one
    parameter when it is moved, sharded or saved.

    Raises `ConfigError` for sizes that are not positive or do not fit together.
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
        *,
        num_kv_heads: int | None = None,
        tie_embeddings: bool = False,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        head_size: int | None = None,
        norm_eps: float = 1e-5,
        rope_scaling: RopeScaling | None = None,
        rope_factor: float | None = None,
        rope_low_freq_factor: float | None = None,
        rope_high_freq_factor: float | None = None,
        rope_original_context: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(vocab_size=vocab_size, context_length=context_length, num_layers=num_layers)
        self.vocab_size = vocab_size
        self.context_length = context_length
        rope = RotaryPositionalEmbedding(
            rope_theta,
            checked_head_size(d_model, num_heads, num_kv_heads, head_size),
            context_length,
            device=device,
            scaling=rope_scaling,
            factor=rope_factor,
            low_freq_factor=rope_low_freq_factor,
            high_freq_factor=rope_high_freq_factor,
            original_context=rope_original_context,
        )
        self.token_embeddings = Embedding(vocab_size, d_model, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            TransformerBlock(
                d_model,
                num_heads,
                d_ff,
                context_length,
                rope_theta,
                num_kv_heads=num_kv_heads,
                qk_norm=qk_norm,
                qkv_bias=qkv_bias,
                head_size=head_size,
                norm_eps=norm_eps,
                rope=rope,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_layers)
        )
        self.ln_final = RMSNorm(d_model, norm_eps, device=device, dtype=dtype)
        self.lm_head = None if tie_embeddings else Linear(d_model, vocab_size, device=device, dtype=dtype)
        self.init_weights()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight afresh, from `generator` if given (else from torch's global one).

        Matrices: truncated normal of variance 2 / (in + out). Those that write to the residual stream
        (`attn.output_proj`, `ffn.w2`) are divided by sqrt(2 · num_layers), so that the stream's variance
        does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Embeddings: variance 1, the
        scale of what the blocks add to them; tied ones 1 / d_model, which makes the first logits, their
        products with features of variance 1, of variance 1 as well.
        """
        residual_scale = 1 / math.sqrt(2 * len(self.layers))
        embedding_std = 1.0 if self.lm_head is not None else self.token_embeddings.embedding_dim**-0.5
        self.token_embeddings.reset_parameters(generator, embedding_std)
        for layer in self.layers:
            assert isinstance(layer, TransformerBlock)
            layer.reset_parameters(generator, residual_scale)
        self.ln_final.reset_parameters()
        if self.lm_head is not None:
            self.lm_head.reset_parameters(generator)

    def forward(
        self,
        in_indices_BT: Tensor,
        token_positions: Tensor | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Return the logits (B, T, V) of the token that follows each of the ids (B, T).

        Arguments as of `hidden_states`.
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

        `token_positions`, of shape (T,) or (B, T), default to 0, 1, …; with a cache to what follows the
        slots in use. See `kv_cache` for what they may be there. `mask`, boolean of shape (T, T) or (B, 1, T, T),
        says which tokens (True) a token may attend to instead of itself and all before it. Raises `ConfigError` for
        more than `context_length` positions, and for a mask beside a cache, which has its own.
        """
        if mask is not None and cache is not None:
            raise ConfigError("a mask cannot be given with a key-value cache, which says itself who attends to what")
        x_BTD = self.token_embeddings(in_indices_BT)
        layer_caches: list[LayerCache] | list[None] = [None] * len(self.layers)
        if cache is not None:
            layer_caches = cache.layers(in_indices_BT.shape, token_positions)
        for layer, layer_cache in zip(self.layers, layer_caches, strict=True):
            x_BTD = layer(x_BTD, token_positions, layer_cache, mask)
        if cache is not None:
            cache.length += in_indices_BT.shape[-1]
        return self.ln_final(x_BTD)

    def logits(self, features: Tensor) -> Tensor:
        """Project features (..., D) to the vocabulary, (..., V)."""
        if self.lm_head is None:
            return nn.functional.linear(features, self.token_embeddings.weight)
        return self.lm_head(features)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) of `logits`, for a loss that makes the logits piece by piece."""
        return self.token_embeddings.weight if self.lm_head is None else self.lm_head.weight

    def new_cache(self, batch_size: int, max_len: int | None = None) -> KVCache:
        """Return an empty key-value cache for this model, of `max_len` slots (default: the context)."""
        max_len = self.context_length if max_len is None else max_len
        require_positive(batch_size=batch_size, max_len=max_len)
        if max_len > self.context_length:
            raise ConfigError(f"max_len {max_len} exceeds the model's context length {self.context_length}")
        first = self.layers[0]
        assert isinstance(first, TransformerBlock)
        weight = self.token_embeddings.weight
        return KVCache(
            num_layers=len(self.layers),
            batch_size=batch_size,
            num_kv_heads=first.attn.num_kv_heads,
            max_len=max_len,
            d_head=first.attn.d_head,
            device=weight.device,
            dtype=weight.dtype,
        )
