"""The tokenizer: text to ids and back, the same ids that GPT-2 and its kin (and tiktoken) give for the same files.

Text is split at special tokens, then into pre-tokens, and each pre-token is merged by itself. Most pre-tokens recur, so
their ids are cached. A long text is encoded in blocks, one after another or on several threads.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt

from transformerlm.hparams import END_OF_TEXT
from transformerlm.tokenizer import io, tiktoken_file
from transformerlm.tokenizer.backend import Codec, IdArray, Specials, joined
from transformerlm.tokenizer.normalize import normalized
from transformerlm.tokenizer.pretokenize import GPT2, split_special
from transformerlm.tokenizer.settings import TokenizerSettings
from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.tokenizer.tiktoken_file import merges_of_ranks
from transformerlm.tokenizer.utf8 import to_bytes, to_text, valid_unicode
from transformerlm.tokenizer.validation import (
    TokenIds,
    check_ends,
    check_merges,
    check_special_tokens,
    check_vocab,
    ordinary_ids,
    ordinary_tokens,
)
from transformerlm.utils.errors import TokenizerError, require_list
from transformerlm.utils.parallel import ordered_thread_map, worker_count
from transformerlm.utils.text_files import read_bytes

BLOCK = 1 << 18
"""Characters or bytes per block: enough to amortise a call, few enough that the block and its ids fit the processor's
cache."""

ITERABLE_BLOCK = 1 << 16
"""The same for ids that are yielded one by one: smaller, so that the first id comes soon."""

AllowedSpecial: TypeAlias = Literal["all"] | Set[str]
Ids: TypeAlias = Iterable[int] | npt.NDArray[np.integer]


@final
class Tokenizer:
    """A byte-level BPE tokenizer with the pre-tokenization of GPT-2 or one of its successors. It can be pickled."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | Mapping[str, int] | None = None,
        *,
        pattern: str = GPT2,
        normalization: str | None = None,
        whole_words: bool = False,
        end_of_text: str = END_OF_TEXT,
        beginning_of_text: str | None = None,
        unknown_token: str | None = None,
    ) -> None:
        """Build a tokenizer from a vocabulary (id to bytes) and merges (the lowest rank first).

        Special tokens that `vocab` lacks are appended with the next free ids. An entry of `vocab` that is neither a
        single byte, nor a merged token, nor in `special_tokens` is decoded, but encoded to only with `whole_words`.

        Args:
            vocab: ids and their bytes. There may be gaps between the ids, and single bytes may be missing.
            merges: pairs of tokens; the adjacent pair listed first is merged first. A pair may use tokens that only
                later merges make, and several merges may make the same token.
            special_tokens: texts that are never split, each one id; or texts and their ids. Such an id may also be an
                ordinary token's, and a special token may have the bytes of an ordinary one.
            pattern: how text is cut into pre-tokens: one of `pretokenize.PATTERNS`.
            normalization: None, or "NFC" to normalize text to that form (Unicode Standard Annex 15); `decode` then
                returns normalized text. Special tokens are found before normalizing.
            whole_words: encode a pre-token that is in the vocabulary as that id, without merging, as tiktoken does
                (ignore_merges).
            end_of_text: the special token that ends documents, if there is one of this name.
            beginning_of_text: the special token that begins texts for the model; None for none. `encode` does not add
                it, since it cannot tell whether its input is the start of a text.
            unknown_token: the token for a byte that is not a token itself; None to drop such bytes before merging, as
                `tokenizers` does.

        Raises `TokenizerError` for a vocabulary that violates the rules in `transformerlm.tokenizer.validation`, for
        special tokens that are also ordinary tokens but have no id given, and for unknown settings.
        """
        special_tokens = special_tokens or ()
        check_special_tokens(special_tokens)
        check_vocab(vocab, source="vocab")
        self._vocab = dict(vocab)
        self._merges = list(merges)
        self._special_tokens = self._number_specials(special_tokens)
        self._vocab = dict(sorted(self._vocab.items()))
        special_ids = set(self._special_tokens.values())
        id_of = ordinary_ids(self._vocab, special_ids, source="vocab")
        check_merges(self._merges, id_of, where=lambda index: f"merges[{index}]")
        self._settings = TokenizerSettings(
            pattern=pattern,
            normalization=normalization,
            whole_words=whole_words,
            end_of_text=end_of_text,
            beginning_of_text=beginning_of_text,
            unknown_token=unknown_token,
        )
        self._settings.check(self._special_tokens)
        if unknown_token is not None and to_bytes(unknown_token) not in id_of:
            raise TokenizerError(f"unknown_token is {unknown_token!r}, which is no token; name one of the vocabulary")
        self._all_specials = Specials(self._special_tokens)
        self._token_ids = TokenIds(id_of, None if unknown_token is None else id_of[to_bytes(unknown_token)])
        words = {token: token_id for token, token_id in id_of.items() if token_id not in special_ids}
        self._codec = Codec(
            self._vocab,
            self._token_ids,
            self._merges,
            pattern=pattern,
            normalization=normalization,
            whole_words=words if whole_words else {},
        )

    def _number_specials(self, special_tokens: Sequence[str] | Mapping[str, int]) -> dict[str, int]:
        """Return the ids of special tokens, ascending, after adding the missing ones to the vocabulary."""
        ids = dict(special_tokens) if isinstance(special_tokens, Mapping) else self._find_specials(special_tokens)
        for special, token_id in ids.items():
            token = special.encode("utf-8")
            if self._vocab.setdefault(token_id, token) != token:
                raise TokenizerError(
                    f"special token {special!r} has the id {token_id!r} of {self._vocab[token_id]!r}; give it its own"
                )
        check_vocab(self._vocab, source="special_tokens")
        if len(set(ids.values())) < len(ids):
            raise TokenizerError("two special tokens have the same id; give each its own")
        return dict(sorted(ids.items(), key=lambda item: item[1]))

    def _find_specials(self, special_tokens: Sequence[str]) -> dict[str, int]:
        """Return the ids of special tokens; those that the vocabulary lacks get the next free ones.

        Of two tokens with the same bytes, one is ordinary and the one with the larger id special.
        """
        ordinary = ordinary_tokens(self._merges)
        found: dict[bytes, list[int]] = {}
        for token_id in sorted(self._vocab):
            found.setdefault(self._vocab[token_id], []).append(token_id)
        next_id = self.vocab_size
        ids: dict[str, int] = {}
        for special in special_tokens:
            token = special.encode("utf-8")
            if token in ordinary and len(found.get(token, [])) == 1:
                raise TokenizerError(
                    f"special token {special!r} is an ordinary token; choose another text, or give an id with it"
                )
            if token in found:
                ids[special] = found[token][-1]
            else:
                ids[special] = next_id
                next_id += 1
        return ids

    @classmethod
    def from_files(
        cls,
        vocab_path: Path | str,
        merges_path: Path | str,
        special_tokens: Sequence[str] | Mapping[str, int] | None = None,
    ) -> Self:
        """Read GPT-2's two files. Only the `special_tokens` named here are recognised in text.

        Raises `TokenizerError`, naming file and line, for invalid files.
        """
        vocab, merges = io.read_tokenizer_files(vocab_path, merges_path)
        return cls(vocab, merges, special_tokens)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read the files that `save` wrote. Raises `TokenizerError`.

        Without the settings file, the special tokens are the entries that are neither single bytes nor merged tokens.
        """
        vocab, merges, special_tokens, settings = io.read_folder(Path(folder))
        return cls(vocab, merges, special_tokens, **asdict(settings))

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer into `folder`, each file atomically.

        The files are `vocab.json` and `merges.txt` in GPT-2's form, and `tokenizer_settings.json` if these two cannot
        express the tokenizer.
        """
        io.write_folder(Path(folder), self._vocab, self._merges, self._special_tokens, self._settings)

    @classmethod
    def from_tiktoken(
        cls,
        path: Path | str,
        *,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
        normalization: str | None = None,
        end_of_text: str = END_OF_TEXT,
        beginning_of_text: str | None = None,
    ) -> Self:
        """Read a `.tiktoken` file; the ids are tiktoken's for the same file, pattern and special tokens.

        The file contains neither pattern nor special tokens. The default pattern is "cl100k" for a file named
        `cl100k_base.tiktoken`, "o200k" for `o200k_base.tiktoken`, else "gpt2"; give "llama3" for Llama 3's
        `tokenizer.model`, "qwen2" with "NFC" for Qwen's `qwen.tiktoken`. `special_tokens` are texts and their ids.

        Raises `TokenizerError`, naming file and line, for an invalid file.
        """
        if pattern is None:
            pattern = tiktoken_file.PATTERN_OF_NAME.get(Path(path).name, GPT2)
        special_tokens = special_tokens or {}
        ranks = tiktoken_file.read_ranks(Path(path))
        vocab = tiktoken_file.full_vocab(ranks, special_tokens)
        return cls(
            vocab,
            merges_of_ranks(ranks),
            special_tokens,
            pattern=pattern,
            normalization=normalization,
            whole_words=True,
            end_of_text=end_of_text,
            beginning_of_text=beginning_of_text,
        )

    def to_tiktoken(self, path: Path | str) -> None:
        """Write a `.tiktoken` file with which tiktoken gives the same ids, atomically.

        Pattern and special tokens must be passed to tiktoken separately; it does not normalize.

        Raises `TokenizerError`, before writing, for a tokenizer that this format cannot express.
        """
        tiktoken_file.write_ranks(
            Path(path),
            self._token_ids.id_of,
            self._merges,
            set(self._special_tokens.values()),
            pattern=self._settings.pattern,
            whole_words=self._settings.whole_words,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **asdict(self._settings)), (self._vocab, self._merges, self._special_tokens)

    @property
    def vocab(self) -> Mapping[int, bytes]:
        """From id to bytes, ids ascending."""
        return self._vocab

    @property
    def merges(self) -> Sequence[tuple[bytes, bytes]]:
        """The merges, the lowest rank first."""
        return self._merges

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """From text to id, ids ascending."""
        return self._special_tokens

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self._vocab) + 1

    @property
    def settings(self) -> TokenizerSettings:
        """The other settings: pattern, normalization, whole words, roles of special tokens."""
        return self._settings

    @property
    def eos_token_id(self) -> int | None:
        """The id of the special token that ends documents, `<|endoftext|>` by default; None if there is none."""
        return self._special_tokens.get(self._settings.end_of_text)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the special token that begins texts for the model; None if there is none."""
        beginning = self._settings.beginning_of_text
        return None if beginning is None else self._special_tokens[beginning]

    def sha256(self) -> str:
        """Return a SHA-256 that identifies the tokenizer's behaviour, independent of its file format; computed once.

        It hashes compact JSON, [tokens, merges, special tokens]: all tokens in hexadecimal, ordered by id, null for a
        gap; the merges as pairs of hexadecimal tokens; the ids of the special tokens. A fourth item holds the settings
        that differ from GPT-2's, if any.
        """
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        # Built as a string: a list per merge would make the garbage collector scan the whole heap.
        by_id = map(self._vocab.get, range(self.vocab_size))
        tokens = ",".join("null" if token is None else f'"{token.hex()}"' for token in by_id)
        merges = ",".join(f'["{left.hex()}","{right.hex()}"]' for left, right in self._merges)
        special_ids = ",".join(map(str, self._special_tokens.values()))
        changed = self._settings.changed()
        settings = "," + json.dumps(changed, sort_keys=True, separators=(",", ":")) if changed else ""
        content = f"[[{tokens}],[{merges}],[{special_ids}]{settings}]"
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def encode(
        self,
        text: str | bytes,
        *,
        allowed_special: AllowedSpecial = "all",
        errors: Literal["ignore", "strict"] = "ignore",
    ) -> list[int]:
        """Return the ids of `text`.

        Special tokens not in `allowed_special` are encoded as plain text; for untrusted text pass `set()`. Bytes need
        not be UTF-8: an invalid byte counts as a character of its own. In a `str`, a surrogate pair becomes its
        character and a lone surrogate U+FFFD, as in tiktoken.

        With a vocabulary that lacks single bytes, bytes it cannot express are dropped or become `unknown_token`.

        Raises `TokenizerError` if `allowed_special` names an unknown special token, and with `errors="strict"` for text
        that the vocabulary cannot express.
        """
        if errors not in ("ignore", "strict"):
            raise TokenizerError(f'errors is {errors!r}; give "ignore" or "strict"')
        specials = self._specials(allowed_special)
        if errors == "strict" and self._token_ids.missing:
            ids = self.encode(text, allowed_special=allowed_special)
            self._check_complete(ids, text, specials)
            return ids
        if len(text) <= BLOCK:
            return self._codec.encode(text, specials)
        self._codec.expect(len(text))
        ids: list[int] = []
        for block_ids in self._encode_blocks([text], specials, BLOCK):
            ids += block_ids
        return ids

    def _check_complete(self, ids: list[int], text: str | bytes, specials: Specials) -> None:
        """Raise `TokenizerError` unless `ids` stand for the whole of `text`."""
        parts = split_special(valid_unicode(text) if isinstance(text, str) else to_text(text), specials.pattern)
        if self._settings.normalization is not None:
            parts = [part if place % 2 else normalized(part) for place, part in enumerate(parts)]
        whole = to_bytes("".join(parts))
        if self._codec.decode(ids) != whole:
            byte = next(byte for byte in whole if byte in self._token_ids.missing)
            raise TokenizerError(
                f"the text has the byte {bytes([byte])!r}, which the vocabulary lacks; remove it, or encode without "
                'errors="strict"'
            )

    def encode_iterable(self, texts: Iterable[str], *, allowed_special: AllowedSpecial = "all") -> Iterator[int]:
        """Yield the ids of the concatenation of `texts`, the same however it is divided.

        Memory is constant: one block of text, however long the whole is (except that a pre-token longer than a block is
        held whole). For other arguments and errors see `encode`.
        """
        return chain.from_iterable(self._encode_blocks(texts, self._specials(allowed_special), ITERABLE_BLOCK))

    def _encode_blocks(self, parts: Iterable[Any], specials: Specials, length: int) -> Iterator[list[int]]:
        return (
            self._codec.encode(block, specials)
            for block in safe_blocks(parts, specials.ids, length, self._settings.pattern)
        )

    def encode_to_array(
        self, text: str | bytes, *, num_threads: int = 1, allowed_special: AllowedSpecial = "all"
    ) -> IdArray:
        """Return the ids of `text` as an array: uint16 if the vocabulary has at most 65,536 entries, else uint32.

        `num_threads` threads share the work; 0 means one per core. For the rest see `encode`.
        """
        specials = self._specials(allowed_special)
        self._codec.expect(len(text))
        if isinstance(text, bytes) and num_threads == 1:
            return self._codec.encode_to_arrays([text], specials)[0]
        return joined(self._arrays([text], specials, num_threads), self._codec.dtype, room=len(text))

    def encode_file(
        self, path: Path | str, *, num_threads: int = 1, allowed_special: AllowedSpecial = "all"
    ) -> Iterator[IdArray]:
        """Yield the ids of a text file in parts, in constant memory; concatenated, they are the ids of the whole text.

        The file may be compressed or remote, see `corpus`, and need not be UTF-8; a byte-order mark is dropped. Raises
        `DataError` if it cannot be read. For the rest see `encode_to_array`.
        """
        yield from self.encode_parts(read_bytes(path), num_threads=num_threads, allowed_special=allowed_special)

    def encode_parts(
        self, parts: Iterable[str] | Iterable[bytes], *, num_threads: int = 1, allowed_special: AllowedSpecial = "all"
    ) -> Iterator[IdArray]:
        """Yield the ids of the concatenation of `parts`, the same however it is divided, in constant memory.

        For the rest see `encode_to_array`.
        """
        yield from self._arrays(parts, self._specials(allowed_special), num_threads)

    def _arrays(self, parts: Iterable[Any], specials: Specials, num_threads: int) -> Iterator[IdArray]:
        blocks = safe_blocks(parts, specials.ids, BLOCK, self._settings.pattern)
        threads = worker_count(num_threads)
        return ordered_thread_map(
            lambda block: self._codec.encode_to_arrays([block], specials)[0], blocks, threads=threads
        )

    def encode_batch(
        self, texts: Iterable[str | bytes], *, num_threads: int = 0, allowed_special: AllowedSpecial = "all"
    ) -> list[IdArray]:
        """Return the ids of each text, as `encode_to_array` does; 0 threads means one per core."""
        require_list("texts", texts)
        specials = self._specials(allowed_special)
        encode_group = partial(self._codec.encode_to_arrays, specials=specials)
        groups = ordered_thread_map(encode_group, _groups(texts), threads=worker_count(num_threads))
        return list(chain.from_iterable(groups))

    def encode_joined(
        self,
        data: bytes,
        ends: npt.NDArray[np.int64],
        *,
        num_threads: int = 1,
        allowed_special: AllowedSpecial = "all",
    ) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """Return the ids of the concatenated texts in `data`, and the end of each text's ids.

        `ends`, shape (texts,), are the ends of the texts in `data`, ascending, the last at the end of `data`. Like
        `encode_batch`, without per-text overhead. For the rest see `encode_to_array`.
        """
        check_ends(ends, len(data))
        specials = self._specials(allowed_special)
        threads = worker_count(num_threads)
        if threads == 1:
            return self._codec.encode_joined(data, ends, specials)
        arrays: list[IdArray] = [np.empty(0, self._codec.dtype)]
        id_ends: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        count = 0
        encode_group = partial(self._encode_range, data, ends, specials)
        for group_ids, group_ends in ordered_thread_map(encode_group, _ranges(ends), threads=threads):
            arrays.append(group_ids)
            id_ends.append(group_ends + count)
            count += len(group_ids)
        return np.concatenate(arrays), np.concatenate(id_ends)

    def _encode_range(
        self, data: bytes, ends: npt.NDArray[np.int64], specials: Specials, texts: tuple[int, int]
    ) -> tuple[IdArray, npt.NDArray[np.int64]]:
        first, last = texts
        begin = int(ends[first - 1]) if first else 0
        return self._codec.encode_joined(data[begin : int(ends[last - 1])], ends[first:last] - begin, specials)

    @property
    def is_compiled(self) -> bool:
        """Whether the numba backend is in use."""
        return self._codec.is_compiled

    def expect(self, num_bytes: int) -> None:
        """Prepare to encode this number of bytes: load or compile the numba backend, if that pays off."""
        self._codec.expect(num_bytes)

    def count_tokens(self, text: str | bytes, *, allowed_special: AllowedSpecial = "all") -> int:
        """Return the number of ids of `text`, without keeping them. For the rest see `encode`."""
        specials = self._specials(allowed_special)
        self._codec.expect(len(text))
        return sum(map(len, self._arrays([text], specials, num_threads=1)))

    def _specials(self, allowed_special: AllowedSpecial | str) -> Specials:
        if allowed_special == "all":
            return self._all_specials
        if isinstance(allowed_special, str):
            raise TypeError(f'allowed_special is {allowed_special!r}; give "all" or a set of special tokens')
        for special in allowed_special:
            if special not in self._special_tokens:
                raise TokenizerError(
                    f"allowed_special names {special!r}; the special tokens are {list(self._special_tokens)}"
                )
        return Specials({special: self._special_tokens[special] for special in allowed_special})

    def decode(self, ids: Ids) -> str:
        """Return the text of `ids`, with U+FFFD for bytes that are not UTF-8.

        Raises `TokenizerError` for an unknown id.
        """
        return self._codec.decode(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Ids) -> bytes:
        """Return the bytes of `ids`, which need not be UTF-8. Raises `TokenizerError` like `decode`."""
        return self._codec.decode(ids)

    def decode_batch(self, batch: Iterable[Ids], *, num_threads: int = 1) -> list[str]:
        """Return the text of each list or array of ids; 0 threads means one per core. Raises like `decode`."""
        return list(ordered_thread_map(self.decode, batch, threads=worker_count(num_threads)))


def _groups(texts: Iterable[str | bytes]) -> Iterator[list[str | bytes]]:
    """Group texts so that each group amortises a call."""
    group: list[str | bytes] = []
    length = 0
    for text in texts:
        group.append(text)
        length += len(text)
        if length >= BLOCK:
            yield group
            group, length = [], 0
    if group:
        yield group


def _ranges(ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Divide texts into ranges that each amortise a call."""
    first, begin = 0, 0
    while first < len(ends):
        last = min(len(ends), max(first + 1, int(np.searchsorted(ends, begin + BLOCK))))
        yield first, last
        first, begin = last, int(ends[last - 1])
