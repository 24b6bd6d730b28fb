"""The numba backend: bytes to arrays of ids and back, safe to call from several threads. See `kernels`."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from transformerlm.token_files.index import id_dtype
from transformerlm.tokenizer.kernels.decoder import decode_array, decode_list, decode_tables
from transformerlm.tokenizer.kernels.encoder import SLACK, EncodeTables, Memory, encode_texts, new_memory
from transformerlm.tokenizer.kernels.merger import merge_tables, token_numbers
from transformerlm.tokenizer.kernels.pretokenize_regex import rules_of
from transformerlm.tokenizer.kernels.special_tokens import SpecialTokens
from transformerlm.tokenizer.kernels.whole_words import whole_words_of
from transformerlm.tokenizer.validation import TokenIds
from transformerlm.utils.parallel import worker_count

IdArray = npt.NDArray[np.unsignedinteger]


@final
class CompiledCodec:
    """Encodes and decodes bytes; see `Codec`."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        token_ids: TokenIds,
        merges: Sequence[tuple[bytes, bytes]],
        *,
        pattern: str,
        whole_words: Mapping[bytes, int],
    ) -> None:
        number_of = token_numbers(token_ids.id_of)
        left_out = np.array([token_id is None for token_id in token_ids.of_byte])
        ids = [token_id or 0 for token_id in token_ids.of_byte]
        ids += [token_ids.id_of[token] for token in number_of if len(token) > 1]
        self._tables = EncodeTables(
            merges=merge_tables(merges, number_of),
            ids=np.array(ids, id_dtype(max(vocab) + 1)),
            left_out=left_out if left_out.any() else left_out[:0],
            rules=rules_of(pattern),
            words=whole_words_of(whole_words),
        )
        self._decode_tables = decode_tables(vocab)
        self._free_memories: list[Memory] = []

    def encode(self, texts: Sequence[bytes], special_tokens: SpecialTokens) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """Return the concatenated ids of `texts`, and the end of each text's ids. See `encode_joined`."""
        data = texts[0] if len(texts) == 1 else b"".join(texts)
        return self.encode_joined(data, np.cumsum([len(text) for text in texts], dtype=np.int64), special_tokens)

    def encode_joined(
        self, joined: bytes, text_ends: npt.NDArray[np.int64], special_tokens: SpecialTokens
    ) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """Return the ids of the texts in `joined`, which end at `text_ends`, and the end of each text's ids.

        May be called by several threads at once: each call takes a free cache or creates one.
        """
        data = np.frombuffer(joined, np.uint8)
        id_ends = np.empty(len(text_ends), np.int64)
        # Over-allocated; untouched pages are never committed.
        ids = np.empty(len(data) + SLACK, self._tables.ids.dtype)
        try:
            memory = self._free_memories.pop()
        except IndexError:
            memory = new_memory()
        count = encode_texts(data, text_ends, special_tokens, self._tables, memory, ids, id_ends)
        if len(self._free_memories) < worker_count(0):  # keep at most one per worker, even after a burst of threads
            self._free_memories.append(memory)
        ids.resize(count, refcheck=False)
        return ids, id_ends

    def decode(self, ids: npt.NDArray[np.integer] | Sequence[int]) -> bytes | None:
        """Return the bytes of `ids`, or None if the pure-Python backend must decode them; see `kernels.decoder`."""
        if isinstance(ids, np.ndarray):
            return decode_array(ids, self._decode_tables)
        return decode_list(ids, self._decode_tables)
