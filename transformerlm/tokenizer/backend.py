"""Selects the backend by the size of the work: pure Python (`bpe`) for small inputs, numba (`compiled`) for large ones.

Their results are the same. The numba backend is a few dozen times as fast, but importing numba and loading the kernels
from disk takes half a second, and compiling them, once per machine, ten seconds or more. Once loaded, it handles all
calls except the shortest.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
import numpy.typing as npt

from transformerlm.token_files.index import id_dtype
from transformerlm.tokenizer import bpe, plain
from transformerlm.tokenizer.normalize import is_normalized, normalized
from transformerlm.tokenizer.pretokenize import GPT2, special_pattern, split_special
from transformerlm.tokenizer.utf8 import to_bytes, to_text, valid_unicode
from transformerlm.tokenizer.validation import TokenIds, check_id_array

if TYPE_CHECKING:
    from transformerlm.tokenizer.compiled import CompiledCodec
    from transformerlm.tokenizer.kernels.special_tokens import SpecialTokens

SHORT = 256
"""Characters, bytes or ids that pure Python processes in the time it takes to call a kernel."""

IdArray = npt.NDArray[np.unsignedinteger]


class Threshold(NamedTuple):
    """Sizes in bytes from which numba pays off: with its kernels on disk, and if they must be compiled first."""

    to_load: int
    to_compile: int


TEXT = Threshold(to_load=1 << 20, to_compile=1 << 25)
"""Text to encode. Pure Python takes 0.2 s and 5 s for these sizes."""

CORPUS = Threshold(to_load=1 << 22, to_compile=1 << 25)
"""Text to count. Compiled counting is faster from 4 MB on, including the time to load the kernels."""

WORDS = Threshold(to_load=1 << 18, to_compile=1 << 20)
"""Distinct pre-tokens to learn merges from."""


def compiled_pays(size: int, threshold: Threshold, kernel: str) -> bool:
    """Return whether numba is faster for `size` bytes; `kernel` (`module.function`) is the main kernel for them.

    Never with NUMBA_DISABLE_JIT=1.
    """
    if size < threshold.to_load:
        return False
    from transformerlm.tokenizer.kernels import jit

    return jit.available() and (size >= threshold.to_compile or jit.is_kept(kernel))


@final
class Specials:
    """The special tokens to find in a text, in the form that each backend takes."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids
        self.pattern = special_pattern(ids)

    @cached_property
    def for_kernels(self) -> "SpecialTokens":
        from transformerlm.tokenizer.kernels.special_tokens import special_tokens_of

        return special_tokens_of({token.encode("utf-8"): token_id for token, token_id in self.ids.items()})


NO_SPECIALS = Specials({})


@final
class Codec:
    """Encodes with the ids of tokens and merges (the lowest rank first), and decodes with a vocabulary (id to bytes).

    `pattern` is one of `pretokenize.PATTERNS`; `whole_words` maps pre-tokens that are never merged to their ids.
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        token_ids: TokenIds,
        merges: Sequence[tuple[bytes, bytes]],
        *,
        pattern: str = GPT2,
        normalization: str | None = None,
        whole_words: Mapping[bytes, int] | None = None,
    ) -> None:
        self._vocab = vocab
        self._vocab_size = max(vocab) + 1
        self._token_ids = token_ids
        self._merges = merges
        self._pattern = pattern
        self._normalizes = normalization is not None
        self._whole_words = whole_words or {}
        self._plain = plain.PlainEncoder(token_ids, merges, pattern=pattern, whole_words=self._whole_words)
        self._compiled: CompiledCodec | None = None
        self._integers: npt.NDArray[np.object_] = np.empty(0, np.object_)
        self._seen = 0
        self._announced = 0  # bytes passed to `expect` but not yet encoded
        self._lock = Lock()
        self.dtype = np.dtype(id_dtype(self._vocab_size))

    def expect(self, length: int) -> None:
        """Make ready for `length` characters or bytes of text; without this, the text that comes is counted."""
        self._seen += length
        self._announced += length
        self._compiled_for(0)

    def encode(self, text: str | bytes, specials: Specials) -> list[int]:
        """Return the ids of `text`."""
        if self._normalizes and not is_normalized(text):
            return self._encode_parts(text, specials)
        return self._encode_normalized(text, specials)

    def _encode_normalized(self, text: str | bytes, specials: Specials) -> list[int]:
        compiled = self._compiled_for(len(text)) if len(text) > SHORT else None
        if compiled is None:
            return self._plain.encode(_as_text(text), specials)
        ids, _ = compiled.encode([_as_bytes(text)], specials.for_kernels)
        return self._integers[ids].tolist()  # reuses existing int objects: faster than creating them

    def _encode_parts(self, text: str | bytes, specials: Specials) -> list[int]:
        """Return the ids of a text, normalizing it between its special tokens."""
        ids: list[int] = []
        for place, part in enumerate(split_special(_as_text(text), specials.pattern)):
            if place % 2:
                ids.append(specials.ids[part])
            else:  # a special token produced by normalizing counts as plain text
                ids += self._encode_normalized(to_bytes(normalized(part)), NO_SPECIALS)
        return ids

    def encode_to_arrays(self, texts: Sequence[str | bytes], specials: Specials) -> list[IdArray]:
        """Return the ids of each of `texts`. May be called by several threads at once."""
        if self._normalizes and not all(map(is_normalized, texts)):
            return [np.array(self.encode(text, specials), self.dtype) for text in texts]
        length = sum(map(len, texts))
        compiled = self._compiled_for(length) if length > SHORT else None
        if compiled is None:
            return [np.array(self._plain.encode(_as_text(text), specials), self.dtype) for text in texts]
        ids, ends = compiled.encode([_as_bytes(text) for text in texts], specials.for_kernels)
        if len(texts) == 1:
            return [ids]
        begins = [0, *ends.tolist()]
        return [ids[begin:end] for begin, end in zip(begins, ends, strict=False)]

    def encode_joined(
        self, data: bytes, ends: npt.NDArray[np.int64], specials: Specials
    ) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """Return the ids of the concatenated texts in `data`, and the end of each text's ids.

        May be called by several threads at once.
        """
        is_done = not self._normalizes or is_normalized(data)  # then so is each of the texts
        compiled = self._compiled_for(len(data)) if is_done and len(data) > SHORT else None
        if compiled is not None:
            return compiled.encode_joined(data, ends, specials.for_kernels)
        begins = [0, *ends.tolist()]
        texts = (data[begin:end] for begin, end in pairwise(begins))
        if is_done:
            lists = [self._plain.encode(_as_text(text), specials) for text in texts]
        else:
            lists = [self.encode(text, specials) for text in texts]
        ids = np.fromiter(chain.from_iterable(lists), self.dtype, sum(map(len, lists)))
        return ids, np.cumsum([len(of_text) for of_text in lists], dtype=np.int64)

    @property
    def is_compiled(self) -> bool:
        """Whether the numba backend is in use."""
        return self._compiled is not None

    def decode(self, ids: Iterable[int] | npt.NDArray[np.integer]) -> bytes:
        """Return the bytes of `ids`; raise `TokenizerError` for an id outside the vocabulary."""
        if isinstance(ids, np.ndarray):
            check_id_array(ids)
        if isinstance(ids, np.ndarray | list | tuple) and len(ids) > SHORT:
            compiled = self._compiled_for(len(ids))
            decoded = compiled.decode(ids) if compiled is not None else None
            if decoded is not None:
                return decoded
        return bpe.decode(ids.tolist() if isinstance(ids, np.ndarray) else ids, self._vocab)

    def _compiled_for(self, length: int) -> "CompiledCodec | None":
        """Return the numba backend if it is loaded or pays off now that `length` more have to be processed."""
        if self._compiled is None:
            announced = min(length, self._announced)
            self._announced -= announced
            self._seen += length - announced
            if compiled_pays(self._seen, TEXT, "encoder.encode_texts"):
                with self._lock:
                    self._load()
        return self._compiled

    def _load(self) -> None:
        from transformerlm.tokenizer.compiled import CompiledCodec

        if self._compiled is None:
            self._integers = np.arange(self._vocab_size).astype(object)
            self._compiled = CompiledCodec(
                self._vocab,
                self._token_ids,
                self._merges,
                pattern=self._pattern,
                whole_words=self._whole_words,
            )


def _as_text(text: str | bytes) -> str:
    return valid_unicode(text) if isinstance(text, str) else to_text(text)


def _as_bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return valid_unicode(text).encode("utf-8")


def joined(arrays: Iterable[IdArray], dtype: np.dtype, room: int) -> IdArray:
    """Concatenate `arrays`, allocating `room` items at first.

    Over-allocating costs nothing: untouched pages are never committed.
    """
    result = np.empty(room, dtype)
    count = 0
    for array in arrays:
        if count + len(array) > len(result):
            result.resize(max(count + len(array), 2 * len(result)), refcheck=False)
        result[count : count + len(array)] = array
        count += len(array)
    result.resize(count, refcheck=False)
    return result
