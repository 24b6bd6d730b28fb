"""The tokenizers whose training is compared.

These are `train_bpe` of ours and gigatoken's from the file, tokenizers' `train` from the file (which reads line by
line, so that pre-tokens of several newlines are split), rustbpe's `train_from_iterator` from pieces of the file as
they are read. Of pairs that are equally frequent each merges another one first, so that they learn mostly, not wholly,
the same tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.tokenizer_rows import OURS
from benchmarking.tokenizer_tools import module_of
from transformerlm.hparams import END_OF_TEXT

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TRAINING_PIECE_CHARS = 1 << 12  # what rustbpe is given at a time: a document; of longer ones it takes longer

Trainer = Callable[[Path, int, int], Callable[[], Sequence[bytes]]]
"""Takes a text file, the vocabulary size and the number of threads; returns a function that gives the tokens."""


def train_ours(path: Path, vocab_size: int, threads: int) -> Callable[[], Sequence[bytes]]:
    from transformerlm.tokenizer import train_bpe

    _vocab, merges = train_bpe(path, vocab_size, [END_OF_TEXT], num_workers=threads)
    return lambda: [left + right for left, right in merges]


def train_gigatoken(path: Path, vocab_size: int, threads: int) -> Callable[[], Sequence[bytes]]:
    del threads  # set by RAYON_NUM_THREADS, as for the others below
    _vocab, merges = module_of("gigatoken").train_bpe(path, vocab_size, [END_OF_TEXT])
    return lambda: [left + right for left, right in merges]


def train_tokenizers(path: Path, vocab_size: int, threads: int) -> Callable[[], Sequence[bytes]]:
    del threads
    tokenizers = module_of("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = byte_level
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path)], trainer)
    return lambda: _learned(tokenizer)


def _learned(tokenizer: Any) -> list[bytes]:
    from transformerlm.tokenizer import gpt2_bytes_to_unicode

    byte_of = {character: byte for byte, character in gpt2_bytes_to_unicode().items()}
    tokens = [token for token in tokenizer.get_vocab() if len(token) > 1 and token != END_OF_TEXT]
    return [bytes(byte_of[character] for character in token) for token in tokens]


def train_rustbpe(path: Path, vocab_size: int, threads: int) -> Callable[[], Sequence[bytes]]:
    del threads
    num_ordinary = vocab_size - 1  # it knows no special tokens
    tokenizer = module_of("rustbpe").Tokenizer()
    tokenizer.train_from_iterator(_pieces(path), num_ordinary, pattern=GPT2_PATTERN)
    return lambda: [bytes(token) for token, _rank in tokenizer.get_mergeable_ranks() if len(token) > 1]


def _pieces(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        while lines := file.readlines(TRAINING_PIECE_CHARS):
            yield "".join(lines)


TRAINERS: Mapping[str, Trainer] = {
    OURS: train_ours,
    "gigatoken": train_gigatoken,
    "tokenizers": train_tokenizers,
    "rustbpe": train_rustbpe,
}
