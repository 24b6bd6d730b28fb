"""The tokenizer in a GGUF file: token texts, types, merges, and the name of the pre-tokenization.

The patterns of pre-tokenization are built into llama.cpp and selected by name; the name also selects whether a
pre-token in the vocabulary skips the merges, `ignore_merges` (`src/llama-vocab.cpp`).
"""

from typing import TYPE_CHECKING

from transformerlm.tokenizer import Tokenizer
from transformerlm.tokenizer.io import to_stand_ins, vocab_entries
from transformerlm.tokenizer.pretokenize import GPT2, GPT2_DIGITS, LLAMA3, O200K, QWEN2, TEKKEN
from transformerlm.utils.errors import InteropError, TokenizerError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_NAMES = {
    (GPT2, False): "gpt-2",
    (GPT2_DIGITS, False): "smollm",
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "dbrx",
    (QWEN2, False): "qwen2",
    (O200K, False): "gpt-4o",
    (TEKKEN, True): "tekken",
}
"""llama.cpp's name by pattern and `ignore_merges`."""

_END_BY_DEFAULT = 11
"""llama.cpp's end-of-text id for a file that sets none."""


def add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    """Add `tokenizer` to the metadata of a file, with `vocab_size` entries; return notes for the user.

    Ids beyond the tokenizer's become unused entries, as in `convert_hf_to_gguf.py`. Raises `InteropError` for a
    tokenizer that llama.cpp cannot express.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    tokens, types = entries(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{to_stand_ins(left)} {to_stand_ins(right)}" for left, right in tokenizer.merges])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for add, token_id in ((writer.add_bos_token_id, end if begin is None else begin), (writer.add_eos_token_id, end)):
        if token_id is not None:
            add(token_id)
    writer.add_add_bos_token(begin is not None)
    return _notes(tokenizer, vocab_size)


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name for the pre-tokenization of `tokenizer`; raise `InteropError` if it has none."""
    settings = tokenizer.settings
    name = _NAMES.get((settings.pattern, settings.whole_words))
    if name is None:
        whole = " with ignore_merges" if settings.whole_words else ""
        raise InteropError(
            f"llama.cpp does not support this tokenizer's pattern {settings.pattern}{whole}; "
            "export with --format hf instead"
        )
    return name


def entries(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of each of `vocab_size` ids.

    Bytes are written with GPT-2's byte encoder, special tokens literally. Raises `InteropError` if two ids have the
    same text.
    """
    from gguf import TokenType

    try:
        ids = vocab_entries(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens, target="a GGUF file")
    except TokenizerError as error:
        raise InteropError(str(error)) from None
    controls = set(tokenizer.special_tokens.values())
    text_of = {token_id: text for text, token_id in ids.items()}
    types: list[int] = []
    for token_id in range(vocab_size):
        if token_id in text_of:
            types.append(TokenType.CONTROL if token_id in controls else TokenType.NORMAL)
            continue
        text = f"[PAD{token_id}]"
        while text in ids:
            text = f"[{text}]"
        ids[text], text_of[token_id] = token_id, text
        types.append(TokenType.UNUSED)
    return [text_of[token_id] for token_id in range(vocab_size)], types


def _notes(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    notes = []
    if tokenizer.eos_token_id is None and tokenizer.vocab_size > _END_BY_DEFAULT:
        notes.append(f"the tokenizer has no end-of-text token; llama.cpp will use the id {_END_BY_DEFAULT}")
    if tokenizer.settings.normalization is not None:
        notes.append(f"llama.cpp does not normalise text to {tokenizer.settings.normalization}, as the tokenizer does")
    if tokenizer.settings.pattern in (O200K, TEKKEN):
        notes.append(
            f"llama.cpp's {pre_tokenizer_name(tokenizer)} distinguishes upper and lower case in ASCII only: other text "
            "may be tokenized differently"
        )
    if vocab_size > tokenizer.vocab_size:
        notes.append(
            f"the model has {vocab_size - tokenizer.vocab_size:,} more ids than the tokenizer; they are unused"
        )
    return tuple(notes)
