"""One measurement in a process of its own: one tool makes a token file of a text file; a line of JSON tells how long.

    python -m benchmarking.make_data_cell '{"tool": "tiktoken", …}'

Libraries are imported, kernels loaded and a text of other words encoded before the clock starts; the tokenizer that is
timed has seen nothing. Ours builds as the command does, shuffled. A peer reads the file, cuts it at the separator,
encodes the documents in one batch, and writes one array of ids, of the same type as ours, with an end-of-text id behind
each document. `tokenizer` is our tokenizer alone: `encode_batch` of the documents, which are in memory, to no file.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarking.runner import measure_calls, print_measurement
from benchmarking.tokenizer_cell import compile_at_once, complete_tokenizer, use_cores, warm_up_text
from config.bench_make_data import ALONE, OURS
from transformerlm.hparams import END_OF_TEXT

PREPARE = "prepare"
_PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Cell:
    """The task of one process. Paths are absolute."""

    tool: str
    text: str
    tokenizer: str
    out: str
    threads: int = 1
    sources: tuple[str, ...] = ()
    """For `prepare`: the source files of the text, which has `num_bytes`."""
    num_bytes: int = 0
    document_bytes: int = 0
    seed: int = 0


def main(argument: str) -> None:
    """Do what `argument`, a `Cell` as JSON, says, and print the result as the last line of stdout."""
    cell = Cell(**json.loads(argument))
    use_cores(cell.threads)
    compile_at_once()
    print_measurement(prepare(cell) if cell.tool == PREPARE else measure(cell))


def prepare(cell: Cell) -> dict[str, Any]:
    """Write the text, and the tokenizer's files that are not there; return the text's size."""
    from benchmarking.tokenizer_text import build_text

    sources = [Path(source).read_bytes().decode("utf-8") for source in cell.sources]
    paragraphs = build_text(sources, cell.num_bytes, cell.seed).split(_PARAGRAPH)
    with Path(cell.text).open("wb") as file:
        document: list[str] = []
        size = count = 0
        for paragraph in paragraphs:
            document.append(paragraph)
            size += len(paragraph)
            if size >= cell.document_bytes:
                count += 1
                file.write(f"{_PARAGRAPH.join(document)}\n{END_OF_TEXT}\n".encode())
                document, size = [], 0
    complete_tokenizer(Path(cell.tokenizer), Path(cell.text), vocab_size=4096)
    return {"bytes": Path(cell.text).stat().st_size, "documents": count}


def measure(cell: Cell) -> dict[str, Any]:
    """Return seconds, peak memory, the number of ids, and their sum, which does not depend on the order."""
    import numpy as np

    from transformerlm.tokenizer import Tokenizer

    warm_up = Path(cell.out) / "warm_up.txt"
    warm_up.write_text(warm_up_text(), encoding="utf-8")
    tokenizer = Tokenizer.load(cell.tokenizer)
    make = {OURS: build, ALONE: encode_alone}.get(cell.tool, make_with_peer)
    make(cell, tokenizer, warm_up)()
    call = make(cell, Tokenizer.load(cell.tokenizer), Path(cell.text))
    measured, ids_of = measure_calls(call, ["cold"])
    ids = ids_of()
    return {
        **measured,
        "seconds": measured["seconds"]["cold"],
        "tokens": len(ids),
        "sum": int(np.sum(ids, dtype=np.uint64)),
    }


Made = Callable[[], Any]
"""Returns the ids that were made."""


def build(cell: Cell, tokenizer: Any, text: Path) -> Callable[[], Made]:
    """Our data builder, shuffled; the ids are read back from all its shards."""
    import numpy as np

    from databuilder import build_dataset
    from transformerlm.token_files.index import read_info, shard_paths

    out = Path(cell.out) / "ours.dat"

    def ids() -> Any:
        info = read_info(out)
        return np.concatenate([np.fromfile(path, info.dtype) for path in shard_paths(out, info)])

    def call() -> Made:
        build_dataset([text], tokenizer, out, workers=cell.threads)
        return ids

    return call


def encode_alone(cell: Cell, tokenizer: Any, text: Path) -> Callable[[], Made]:
    """Our tokenizer alone."""
    import numpy as np

    documents = read_documents(text)
    end = tokenizer.eos_token_id

    def call() -> Made:
        arrays = tokenizer.encode_batch(documents, num_threads=cell.threads, allowed_special=set())
        return lambda: np.concatenate([*arrays, np.full(len(arrays), end, arrays[0].dtype)])

    return call


def make_with_peer(cell: Cell, tokenizer: Any, text: Path) -> Callable[[], Made]:
    """A peer's batch call, and numpy to write what it gives."""
    import numpy as np

    from benchmarking.tokenizer_tools import CODECS
    from transformerlm.token_files.index import id_dtype

    codec: Any = CODECS[cell.tool](Path(cell.tokenizer))
    dtype, end = id_dtype(tokenizer.vocab_size), tokenizer.eos_token_id
    out = Path(cell.out) / "peer.dat"

    def call() -> Made:
        documents = [document.decode("utf-8") for document in read_documents(text)]
        lists = codec.encode_documents(documents, cell.threads)
        for ids in lists:
            ids.append(end)
        np.concatenate([np.array(ids, dtype) for ids in lists]).tofile(out)
        return lambda: np.fromfile(out, dtype)

    return call


def read_documents(text: Path) -> list[bytes]:
    """Return the documents as everybody cuts them."""
    documents = (document.strip(b"\r\n") for document in text.read_bytes().split(END_OF_TEXT.encode()))
    return [document for document in documents if document]


if __name__ == "__main__":
    main(sys.argv[1])
