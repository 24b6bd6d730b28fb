"""One measurement in a process of its own: one tokenizer does one thing, and a line of JSON on stdout tells how long.

    python -m benchmarking.tokenizer_cell '{"operation": "encode_array", "tool": "tiktoken", …}'

A fresh process knows nothing of the text and has an untouched memory, and whatever a peer does in it (crash, hang, eat
all memory) ends with it. It goes through these steps; only the calls named cold and warm are timed:

    stay on `threads` cores → import → warm up, with another instance and a text of other words, so that
    libraries are loaded and kernels are compiled → make a fresh instance → cold: the call, for the first time
    → drop the result → warm: the same call once more → check what it gave

The result's memory is new to the process in both calls, so that the page faults of writing to it are in the times,
ours and the peers' alike. A `short_call` is timed over thousands of texts, each met once while cold. Training has one
call, named cold. For `start` see `measure_start`, for `prepare` `prepare`.
"""

import importlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarking.runner import measure_calls, memory_bytes, print_measurement, seconds
from benchmarking.tokenizer_rows import OURS
from transformerlm.hparams import END_OF_TEXT

if TYPE_CHECKING:
    from transformerlm.tokenizer import Tokenizer

SHORT_CHARS = 12
SHORT_CALLS = 10_000
WARM_UP_BYTES = 3 << 19
WARM_UP_WORDS = 10_000
WARM_UP_VOCAB_SIZE = 300


@dataclass(frozen=True)
class Cell:
    """The task of one process. Paths are absolute; `ids` is an .npy file with the ids of `text`."""

    operation: str
    tool: str
    threads: int = 1
    text: str = ""
    ids: str = ""
    tokenizer: str = ""
    vocab_size: int = 0
    seed: int = 0


def main(argument: str) -> None:
    """Do what `argument`, a `Cell` as JSON, says, and print the measurements as the last line of stdout.

    `seconds` holds the seconds by call. `memory_before_bytes` is what the process has resident when the first timed
    call begins, `peak_memory_bytes` the most it has had when the last one ended. `same` says whether the results were
    the expected ones (null if there was nothing to compare with).
    """
    cell = Cell(**json.loads(argument))
    use_cores(cell.threads)
    if cell.tool == OURS and cell.operation != "start":
        compile_at_once()
    operations: dict[str, Callable[[Cell], dict[str, Any]]] = {
        "prepare": prepare, "start": measure_start, "train": measure_training, "short_call": measure_short_calls,
        "encode_array": measure_encoding, "encode_list": measure_encoding,
        "decode_bytes": measure_decoding, "decode_str": measure_decoding,
    }  # fmt: skip
    print_measurement(operations[cell.operation](cell))


def use_cores(count: int) -> None:
    """Confine this process to `count` cores, which holds for the threads of any library (where the system can)."""
    os.environ["RAYON_NUM_THREADS"] = str(count)  # before a peer is imported: most are Rust, with this library
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-count:])  # from the end, for the first one often serves interrupts


def compile_at_once() -> None:
    """Let our tokenizer load or compile its kernels at its first text: in the warm-up, and in no timed call."""
    from transformerlm.tokenizer import backend

    backend.TEXT = backend.CORPUS = backend.WORDS = backend.Threshold(to_load=0, to_compile=0)


def measure_encoding(cell: Cell) -> dict[str, Any]:
    """Time `encode_array` or `encode_list` of the text; `same` by all ids."""
    import numpy as np

    from benchmarking.tokenizer_tools import CODECS, Codec, Text, flat_ids

    make = CODECS[cell.tool]
    piece_chars = make.piece_chars(cell.threads)

    def encode(codec: Codec, text: Text) -> Any:
        return codec.encode_list(text) if cell.operation == "encode_list" else codec.encode_array(text, cell.threads)

    encode(make(Path(cell.tokenizer)), Text.of(warm_up_text().encode("utf-8"), piece_chars))
    text = Text.of(Path(cell.text).read_bytes(), piece_chars)
    codec = make(Path(cell.tokenizer))
    measured, result = measure_calls(lambda: encode(codec, text))
    return {**measured, "same": bool(np.array_equal(flat_ids(result), np.load(cell.ids)))}


def measure_decoding(cell: Cell) -> dict[str, Any]:
    """Time `decode_bytes` or `decode_str` of the ids; `same` by the whole text."""
    import numpy as np

    from benchmarking.tokenizer_tools import CODECS, Codec

    make = CODECS[cell.tool]
    ids, expected = np.load(cell.ids), Path(cell.text).read_bytes()

    def prepared(codec: Codec, ids: Any) -> Callable[[], bytes | str]:
        if cell.operation == "decode_bytes":
            array = codec.own_array(ids)
            return lambda: codec.decode_bytes(array)
        as_list = ids.tolist()
        return lambda: codec.decode_str(as_list)

    prepared(make(Path(cell.tokenizer)), (np.arange(WARM_UP_BYTES // 4) % 256).astype(ids.dtype))()
    measured, result = measure_calls(prepared(make(Path(cell.tokenizer)), ids))
    data = result.encode("utf-8") if isinstance(result, str) else result
    return {**measured, "same": data == expected}


def measure_short_calls(cell: Cell) -> dict[str, Any]:
    """Time calls on a dozen characters, the mean of `SHORT_CALLS`.

    The tokenizer has encoded other short texts before, as in a server.
    """
    from benchmarking.tokenizer_text import short_texts
    from benchmarking.tokenizer_tools import CODECS, Text

    make = CODECS[cell.tool]
    make(Path(cell.tokenizer)).encode_list(Text.of(warm_up_text().encode("utf-8"), make.piece_chars(threads=1)))
    text = Path(cell.text).read_text(encoding="utf-8")
    texts = short_texts(text, SHORT_CHARS, SHORT_CALLS + SHORT_CALLS // 10, cell.seed)
    encode = make(Path(cell.tokenizer)).encode_short
    for short in texts[SHORT_CALLS:]:
        encode(short)

    def calls() -> None:
        for short in texts[:SHORT_CALLS]:
            encode(short)

    measured, _ = measure_calls(calls)
    each = {name: value / SHORT_CALLS for name, value in measured["seconds"].items()}
    return {**measured, "seconds": each, "same": None}


def measure_training(cell: Cell) -> dict[str, Any]:
    """Time training from the file; `tokens` are those that were learned, as Latin-1."""
    from benchmarking.tokenizer_trainers import TRAINERS

    train = TRAINERS[cell.tool]
    with tempfile.TemporaryDirectory() as folder:
        warm_up = Path(folder) / "text.txt"
        warm_up.write_text(warm_up_text(), encoding="utf-8")
        train(warm_up, WARM_UP_VOCAB_SIZE, cell.threads)
    measured, tokens = measure_calls(lambda: train(Path(cell.text), cell.vocab_size, cell.threads), ["cold"])
    return {**measured, "same": None, "tokens": [token.decode("latin-1") for token in tokens()]}


def measure_start(cell: Cell) -> dict[str, Any]:
    """Time what our tokenizer does once a process: import, read its files, and get its kernels.

    Kernels are compiled if NUMBA_CACHE_DIR, which the caller sets, is empty, else loaded from there. Their time is the
    difference between the first call and the same call of another instance.
    """
    before = memory_bytes("VmRSS")
    times = {"import": seconds(lambda: importlib.import_module("transformerlm.tokenizer"))}
    from benchmarking.tokenizer_tools import Ours, Text
    from benchmarking.tokenizer_trainers import TRAINERS

    compile_at_once()
    times["construct"] = seconds(lambda: Ours(Path(cell.tokenizer)))
    first, second = Ours(Path(cell.tokenizer)), Ours(Path(cell.tokenizer))
    text = Text.of(warm_up_text().encode("utf-8"), 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(text.data)

        def train() -> object:
            return TRAINERS[OURS](path, WARM_UP_VOCAB_SIZE, 1)

        encoding = seconds(lambda: first.encode_array(text, 1))
        times["encode"] = encoding - seconds(lambda: second.encode_array(text, 1))
        times["train"] = seconds(train) - seconds(train)
    memory = {"memory_before_bytes": before, "peak_memory_bytes": memory_bytes("VmHWM")}
    return {"seconds": times, **memory, "same": None}


def prepare(cell: Cell) -> dict[str, Any]:
    """Make what the other processes need of our tokenizer, and describe the texts.

    `cell.text` is a folder with texts (`X.txt`), `cell.tokenizer` the folder with `vocab.json` and `merges.txt`; if
    that is empty, a tokenizer is trained on the text of `main.txt`. Writes `tokenizer.json`, and `X.npy` with the ids
    of each text.
    """
    import numpy as np

    from transformerlm.tokenizer import count_pretokens, train_bpe

    compile_at_once()
    folder, tokenizer_folder = Path(cell.text), Path(cell.tokenizer)
    tokenizer = complete_tokenizer(tokenizer_folder, folder / "main.txt", cell.vocab_size)
    train_bpe(folder / "main.head.txt", WARM_UP_VOCAB_SIZE, [END_OF_TEXT])  # so that its kernels are on disk
    result: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "texts": {}}
    for path in sorted(folder.glob("*.txt")):
        ids = tokenizer.encode_to_array(path.read_bytes())
        np.save(path.with_suffix(".npy"), ids)
        distinct = len(count_pretokens(path, [END_OF_TEXT]))
        result["texts"][path.stem] = {"bytes": path.stat().st_size, "tokens": len(ids), "distinct_pretokens": distinct}
    return result


def complete_tokenizer(folder: Path, text: Path, vocab_size: int) -> "Tokenizer":
    """Load the tokenizer in `folder`, train one on `text` if the folder is empty, and write its `tokenizer.json`."""
    from benchmarking.tokenizer_tools import write_tokenizer_json
    from transformerlm.tokenizer import Tokenizer, train_bpe

    if not list(folder.iterdir()):
        vocab, merges = train_bpe(text, vocab_size, [END_OF_TEXT])
        Tokenizer(vocab, merges, [END_OF_TEXT]).save(folder)
    tokenizer = Tokenizer.load(folder)
    write_tokenizer_json(folder, tokenizer.special_tokens)
    return tokenizer


def warm_up_text() -> str:
    """Return words of random letters: nothing that helps later."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(WARM_UP_WORDS)]
    return " ".join(rng.choices(words, k=WARM_UP_BYTES // 7))


if __name__ == "__main__":
    main(sys.argv[1])
