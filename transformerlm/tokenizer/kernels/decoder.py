r"""The decoder: ids → bytes.

Decoding is copying: the bytes of each token, one after another. Almost every token has at most 16 bytes, and copying 16
bytes takes two instructions, while copying a variable number takes many. So a table holds the first 16 bytes of every
token, padded with zeros, and all 16 are always copied. The excess is overwritten by the next token:

    ids       464                 2068                7586
    heads     The·············    ␣quick··········    ␣brown··········

    output    The·············
              The␣quick··········
              The␣quick␣brown··········

The rest of a longer token is copied eight bytes at a time from a second array, which holds all tokens whole. Near the
end of the output the excess would not fit, so the last tokens are copied byte by byte.

There are two passes over the ids: the first checks them and adds up the sizes, to allocate the output; the second
copies.
"""

import array
import ctypes
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.intrinsics import read_word, write_word
from transformerlm.tokenizer.kernels.jit import borrowing_kernel
from transformerlm.tokenizer.validation import check_id_array, unknown_id

WORD = 8
NO_TOKEN = -1
HEAD = 2 * WORD
"""Bytes of each token in the table: 72 of GPT-2's 50,257 tokens are longer."""

_COMPILED_DTYPES = (np.uint16, np.uint32, np.int64)
"""Types of ids that the kernels are compiled for: the types of token files, and the usual type in memory."""

# Python's C interface lets the content of `bytes` be written before anyone has seen them, which spares a copy. It is
# https://docs.python.org/3/c-api/bytes.html that says so, of PyBytes_AsString.
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
_memory = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)
_WRITABLE = 0x200  # PyBUF_WRITE


class DecodeTables(NamedTuple):
    """The tokens. Only read, so that threads share it."""

    sizes: npt.NDArray[np.int32]
    """(tokens,); bytes of each token, NO_TOKEN for an id in a gap."""
    heads: npt.NDArray[np.uint64]
    """(tokens, 2); its first 16 bytes, with zeros behind a shorter one."""
    begins: npt.NDArray[np.int64]
    """(tokens,); where it begins in `whole`."""
    whole: npt.NDArray[np.uint8]
    """All tokens one after another, and a word that may be read behind them."""


def decode_tables(vocab: Mapping[int, bytes]) -> DecodeTables:
    """Return the tables of tokens by id."""
    tokens = [vocab.get(token_id, b"") for token_id in range(max(vocab) + 1)]
    sizes = np.fromiter(map(len, tokens), np.int32, len(tokens))
    heads = np.array(tokens, f"S{HEAD}").view(np.uint64).reshape(-1, 2)  # cuts off the rest, fills up with zeros
    begins = np.cumsum(sizes, dtype=np.int64) - sizes
    whole = np.frombuffer(bytearray().join([*tokens, bytes(WORD)]), np.uint8)
    sizes[[token_id for token_id in range(len(tokens)) if token_id not in vocab]] = NO_TOKEN
    return DecodeTables(sizes, heads, begins, whole)


def decode_array(ids: npt.NDArray[np.integer], tables: DecodeTables) -> bytes:
    """Return the bytes of the ids in an array of one dimension and of any integer type.

    Raises `TokenizerError` for an id outside the vocabulary, and for an array that is not of ids.
    """
    check_id_array(ids)
    # Read-only or strided arrays are copied, or the kernels would be compiled for each kind.
    dtype = ids.dtype.type if ids.dtype.isnative and ids.dtype.type in _COMPILED_DTYPES else np.int64
    numbers = np.require(ids, dtype, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])
    known, size = measure(numbers, tables.sizes)
    if known < len(ids):
        raise unknown_id(int(ids[known]), len(tables.sizes))
    decoded = _new_bytes(None, size)
    copy_tokens(numbers, tables, np.frombuffer(_memory(_address(decoded), size, _WRITABLE), np.uint8))
    return decoded


def decode_list(ids: Sequence[int], tables: DecodeTables) -> bytes | None:
    """Return the bytes of the ids in a list, or None if one of them is not a 32-bit integer.

    On None, the pure-Python backend must decode them. Raises `TokenizerError` for other ids outside the vocabulary.
    """
    try:
        numbers = array.array("I", ids)  # twice as fast as an array of numpy's, and it takes no float for an integer
    except (TypeError, OverflowError):
        return None
    return decode_array(np.frombuffer(numbers, np.uintc), tables)


@borrowing_kernel
def measure(ids, sizes):
    """Return how many ids come before the first that is not in the vocabulary, and the bytes they stand for."""
    num_tokens = np.uint64(len(sizes))
    size = 0
    for at in range(len(ids)):
        if np.uint64(ids[at]) >= num_tokens:  # as is a negative one: without a sign it is large
            return at, size
        token_size = sizes[np.int64(ids[at])]
        if token_size == NO_TOKEN:
            return at, size
        size += token_size
    return len(ids), size


@borrowing_kernel
def copy_tokens(ids, tables, out):
    """Write the tokens of `ids` into `out`, which has just the room for them."""
    sizes, heads, begins, whole = tables
    end = 0
    for at in range(len(ids)):
        token = np.int64(ids[at])
        size = np.int64(sizes[token])
        if end + size + HEAD <= len(out):
            write_word(out, end, heads[token, 0])
            write_word(out, end + WORD, heads[token, 1])
            for place in range(HEAD, size, WORD):
                write_word(out, end + place, read_word(whole, begins[token] + place))
        else:
            for place in range(size):
                out[end + place] = whole[begins[token] + place]
        end += size
