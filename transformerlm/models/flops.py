"""The size of a model and its arithmetic per token, from which "FLOP utilisation" is computed."""

from transformerlm.models.transformer import Block, TransformerLM


def num_parameters(model: TransformerLM, non_embedding: bool = False) -> int:
    """Count the parameters; with `non_embedding`, without the embedding table and the output projection.

    The second number is the N of Kaplan et al. 2020, "Scaling Laws", section 2.1.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    if non_embedding:
        count -= model.token_embeddings.weight.numel()
        count -= 0 if model.lm_head is None else model.lm_head.weight.numel()
    return count


def flops_per_token(model: TransformerLM, seq_len: int | None = None) -> int:
    """Return the floating-point operations that training on one token takes, forward and backward.

    6 N + 12 · layers · heads · head size · seq_len (Chowdhery et al. 2022, PaLM, appendix B): a weight costs
    one multiplication and one addition forward and twice that backward; attention scores and sums cost the
    second term, counted in full, as is customary, although causality halves the work. N includes every matrix
    that multiplies a token: the output projection (tied or not), but not the embedding look-up.
    `seq_len` defaults to the context length. A forward pass alone costs a third.
    """
    seq_len = model.context_length if seq_len is None else seq_len
    first = model.layers[0]
    assert isinstance(first, Block)
    matrices = sum(p.numel() for layer in model.layers for p in layer.parameters() if p.ndim == 2)
    matrices += model.vocab_size * model.token_embeddings.embedding_dim
    return 6 * matrices + 12 * len(model.layers) * first.attn.num_heads * first.attn.d_head * seq_len
