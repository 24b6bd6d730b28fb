"""A tokenizer as llama.cpp reads it from a GGUF file: texts, types and merges, and a name for how text is cut.

llama.cpp has the patterns of pre-tokenization built in and knows them by name.
"""

from typing import TYPE_CHECKING

from transformerlm.tokenizer import Tokenizer, gpt2_bytes_to_unicode
from transformerlm.tokenizer.checks import ordinary_tokens
from transformerlm.utils.errors import InteropError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_STAND_INS = gpt2_bytes_to_unicode()


def add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    """Add `tokenizer` to the metadata of a file, with `vocab_size` entries; return notes for people.

    The ids that the tokenizer does not have are unused entries, as in `convert_hf_to_gguf.py`. Raises `InteropError`
    for what llama.cpp cannot express.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    tokens, types = entries(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{to_text(left)} {to_text(right)}" for left, right in tokenizer.merges])
    notes = []
    end = tokenizer.eos_token_id
    if end is None:
        notes.append("the tokenizer has no end-of-text token; llama.cpp then takes the id 11 for it")
    else:
        writer.add_eos_token_id(end)
        writer.add_bos_token_id(end)
    writer.add_add_bos_token(False)
    if vocab_size > tokenizer.vocab_size:
        notes.append(
            f"the model has {vocab_size - tokenizer.vocab_size:,} more ids than the tokenizer; they are unused"
        )
    return tuple(notes)


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name for how `tokenizer` cuts text; raises `InteropError` if it has none."""
    return "gpt-2"


def entries(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of each of `vocab_size` ids.

    Bytes are written in GPT-2's stand-ins, special tokens as they are. Raises `InteropError` if two ids have one text.
    """
    from gguf import TokenType

    ordinary, special = ordinary_tokens(tokenizer.merges), set(tokenizer.special_tokens.values())
    ids: dict[str, int] = {}
    types = []
    for token_id, token in tokenizer.vocab.items():
        text = to_text(token) if token in ordinary else token.decode("utf-8")
        if text in ids:
            raise InteropError(f"the special token {text!r} reads like the ordinary token {ids[text]} in a GGUF file")
        ids[text] = token_id
        control = TokenType.CONTROL if token_id in special else TokenType.UNUSED
        types.append(TokenType.NORMAL if token in ordinary else control)
    for token_id in range(len(types), vocab_size):
        text = f"[PAD{token_id}]"
        while text in ids:
            text = f"[{text}]"
        ids[text] = token_id
        types.append(TokenType.UNUSED)
    return list(ids), types


def to_text(token: bytes) -> str:
    """Return a token as text in which every byte has GPT-2's printable stand-in."""
    return token.decode("latin-1").translate(_STAND_INS)
