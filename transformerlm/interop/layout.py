"""Convert names and rotary layout of weights between this project and Hugging Face's Llama, Mistral, Qwen2 and Qwen3.

**Names.** Both sides have the same matrices with the same orientation, (out, in); `our_name` and `huggingface_name`
are inverse to each other. A tied model has no output matrix on either side.

**Rotary layout.** A head of size K is rotated in P = K / 2 planes. Pair i is rotated by m · theta_i at position m, with
theta_i = base^(-2i / K) on both sides; the difference is which two coordinates form pair i:

    ours, RoFormer (Su et al. 2021, eq. 34):    (x[2i], x[2i + 1])       "pairs"
    theirs, rotate_half (GPT-NeoX):             (x[i], x[i + P])         "halves"

for rotate_half(x) = (-x[P:], x[:P]) and cos, sin repeated for both halves, so that x · cos + rotate_half(x) · sin is

    x[i] cos_i − x[i + P] sin_i    at i,        x[i + P] cos_i + x[i] sin_i    at i + P.

Let Π be the permutation of a head with (Πx)[i] = x[2i] and (Πx)[i + P] = x[2i + 1]. Then R_halves Π = Π R_pairs, and
since a permutation keeps scalar products, attention scores are the same if queries and keys are both permuted:
(R_halves Πq) · (R_halves Πk) = (Π R_pairs q) · (Π R_pairs k) = (R_pairs q) · (R_pairs k). And

    q = W x + b             Πq = (ΠW) x + Πb              rows of the weight and entries of the bias, head by head
    n = g ∘ q / rms(q)      Πn = (Πg) ∘ Πq / rms(Πq)      gains of a norm over the head before the rotation

so the permutation is applied once, to the weights. Values and the output projection do not depend on positions, and
are not changed.
"""

import re

from torch import Tensor

from transformerlm.utils.errors import InteropError

_TOP = {
    "token_embeddings.weight": "model.embed_tokens.weight",
    "ln_final.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "attn.q_proj.bias": "self_attn.q_proj.bias",
    "attn.k_proj.bias": "self_attn.k_proj.bias",
    "attn.v_proj.bias": "self_attn.v_proj.bias",
    "attn.output_proj.bias": "self_attn.o_proj.bias",
    "attn.q_norm.weight": "self_attn.q_norm.weight",
    "attn.k_norm.weight": "self_attn.k_norm.weight",
    "ffn.w1.weight": "mlp.gate_proj.weight",
    "ffn.w2.weight": "mlp.down_proj.weight",
    "ffn.w3.weight": "mlp.up_proj.weight",
    "ln1.weight": "input_layernorm.weight",
    "ln2.weight": "post_attention_layernorm.weight",
}
_FROM_TOP = {theirs: ours for ours, theirs in _TOP.items()}
_FROM_LAYER = {theirs: ours for ours, theirs in _IN_LAYER.items()}
_OURS = re.compile(r"layers\.(0|[1-9][0-9]{0,5})\.(.+)")
_THEIRS = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)")
_ROTATED = re.compile(r"layers\.[0-9]+\.attn\.(?:[qk]_proj\.(?:weight|bias)|[qk]_norm\.weight)")


def huggingface_name(name: str) -> str:
    """Return the Llama family's name of our weight `name`; raise `InteropError` if it has no such weight."""
    if name in _TOP:
        return _TOP[name]
    match = _OURS.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        raise InteropError(f"the weight {name} has no counterpart in the Llama family of models")
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}"


def our_name(name: str) -> str:
    """Return our name of the Llama family's weight `name`; raise `InteropError` if we have no such weight."""
    if name in _FROM_TOP:
        return _FROM_TOP[name]
    match = _THEIRS.fullmatch(name)
    if match is None or match[2] not in _FROM_LAYER:
        raise InteropError(f"the weight {name[:200]!r} has no counterpart in this project's model")
    return f"layers.{match[1]}.{_FROM_LAYER[match[2]]}"


def is_rotated(name: str) -> bool:
    """Return whether our weight `name` produces or scales queries or keys, so that its rows have a rotary layout."""
    return _ROTATED.fullmatch(name) is not None


def pairs_to_halves(weight: Tensor, d_head: int) -> Tensor:
    """Apply Π of the module's docstring to each head: from our layout to Hugging Face's.

    `weight` is a matrix (heads · d_head, d_model), a bias (heads · d_head,), or gains (d_head,); the result is a new
    contiguous tensor of that shape.
    """
    _check(weight, d_head)
    return weight.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def halves_to_pairs(weight: Tensor, d_head: int) -> Tensor:
    """Undo `pairs_to_halves`: from Hugging Face's layout to ours, with the same shapes."""
    _check(weight, d_head)
    return weight.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def to_huggingface(name: str, weight: Tensor, d_head: int) -> tuple[str, Tensor]:
    """Return our weight under the Llama family's name and in its layout."""
    return huggingface_name(name), pairs_to_halves(weight, d_head) if is_rotated(name) else weight


def from_huggingface(name: str, weight: Tensor, d_head: int) -> tuple[str, Tensor]:
    """Return the Llama family's weight under our name and in our layout."""
    ours = our_name(name)
    return ours, halves_to_pairs(weight, d_head) if is_rotated(ours) else weight


def _check(weight: Tensor, d_head: int) -> None:
    if d_head < 2 or d_head % 2 or weight.ndim == 0 or weight.shape[0] % d_head:
        raise InteropError(f"a weight of shape {tuple(weight.shape)} does not consist of heads of size {d_head}")
