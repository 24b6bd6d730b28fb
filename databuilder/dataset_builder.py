"""Text files to token files: documents are encoded in batches by worker processes and written in their order.

Documents are encoded as plain text, so that no text can forge a special token, and each ends with the
end-of-text id. The files appear only when all is done; the result does not depend on the number of workers.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from databuilder.documents import is_validation, read_documents, split_single_document
from databuilder.sources import COMPRESSED_SUFFIXES
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import DataError
from transformerlm.utils.files import require_free_space
from transformerlm.utils.parallel import ordered_map, worker_count
from transformerlm.utils.token_file import TokenFileInfo, TokenFileWriter, id_dtype

BATCH_CHARS = 1 << 19
"""Text a worker encodes at a time: long enough to outweigh sending it, short enough to bound memory."""

SMALL_BYTES = 2_000_000
"""Below this, starting worker processes takes longer than the work."""

Progress = Callable[[int, int, int], None]
"""Called with bytes read, bytes in all, tokens written."""


@dataclass(frozen=True)
class BuildReport:
    """The sidecars of what was written."""

    train: TokenFileInfo
    valid: TokenFileInfo | None


class _Batch(NamedTuple):
    """Documents of one side, to be encoded together."""

    documents: list[str]
    validation: bool


class _Encoded(NamedTuple):
    ids: npt.NDArray[np.uint32]
    num_documents: int
    num_text_bytes: int
    validation: bool


def build_dataset(
    sources: Sequence[Path],
    tokenizer: Tokenizer,
    train: Path,
    *,
    valid: Path | None = None,
    valid_sources: Sequence[Path] = (),
    valid_fraction: float = 0.0,
    separator: str = END_OF_TEXT,
    workers: int = 0,
    progress: Progress | None = None,
) -> BuildReport:
    """Encode `sources` into the token file `train`, and validation documents into `valid` if it is given.

    Validation is `valid_sources` if there are any, else `valid_fraction` of the documents, chosen by a hash of
    their text; of a single document, its end. A document is held in memory whole. Raises `DataError` before anything
    is replaced if the tokenizer has no end-of-text token, an output is a source, the disk is too full, or one side
    would be empty.
    """
    assert valid is not None or not valid_sources, "valid_sources need a file to go to"
    _check_paths(sources, valid_sources, [path for path in (train, valid) if path is not None])
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer has no {END_OF_TEXT} token; train it with that special token")
    fraction = valid_fraction if valid is not None and not valid_sources else 0.0
    text_bytes = sum(_text_size(path) for path in (*sources, *valid_sources))
    # Two bytes of text a token is as bad as byte-level BPE gets on ordinary text.
    require_free_space(train.parent, text_bytes // 2 * np.dtype(id_dtype(tokenizer.vocab_size)).itemsize, "the data")

    meter = _Meter(sources, valid_sources, progress)
    labelled = chain(
        _labelled(read_documents(sources, separator, meter.read_sources), fraction),
        ((document, True) for document in read_documents(valid_sources, separator, meter.read_valid_sources)),
    )
    settings = {"separator": separator, "valid_fraction": fraction}
    with contextlib.ExitStack() as stack:
        writers = {False: stack.enter_context(_writer(train, tokenizer))}
        if valid is not None:
            writers[True] = stack.enter_context(_writer(valid, tokenizer))
        processes = worker_count(workers) if text_bytes > SMALL_BYTES else 1
        for batch in _encode(_batches(labelled), tokenizer, processes):
            writers[batch.validation].write(
                batch.ids, num_documents=batch.num_documents, num_text_bytes=batch.num_text_bytes
            )
            meter.tokens = sum(writer.num_tokens for writer in writers.values())
        _check_filled(writers, sources, valid_sources, fraction)
    described = {
        side: writer.write_sidecar(
            sources=_describe(valid_sources if side and valid_sources else sources),
            split={**settings, "part": "valid" if side else "train"},
        )
        for side, writer in writers.items()
    }
    return BuildReport(described[False], described.get(True))


def count_total_tokens(sources: Sequence[Path], tokenizer: Tokenizer, *, separator: str = END_OF_TEXT) -> int:
    """Return how many tokens the documents of `sources` have, with one end-of-text token each."""
    return sum(
        len(tokenizer.encode(document, allowed_special=set())) + 1 for document in read_documents(sources, separator)
    )


def _labelled(documents: Iterator[str], fraction: float) -> Iterator[tuple[str, bool]]:
    """Yield the documents, each with whether it is for validation."""
    first_two = list(islice(documents, 2))
    if len(first_two) == 1 and fraction > 0:
        train, valid = split_single_document(first_two[0], fraction)
        yield from ((text, side) for text, side in ((train, False), (valid, True)) if text)
        return
    for document in chain(first_two, documents):
        yield document, fraction > 0 and is_validation(document, fraction)


def _batches(labelled: Iterable[tuple[str, bool]]) -> Iterator[_Batch]:
    """Gather documents of each side until they are worth sending to a worker."""
    gathered: dict[bool, list[str]] = {False: [], True: []}
    sizes = {False: 0, True: 0}
    for document, side in labelled:
        gathered[side].append(document)
        sizes[side] += len(document)
        if sizes[side] >= BATCH_CHARS:
            yield _Batch(gathered[side], side)
            gathered[side], sizes[side] = [], 0
    for side, documents in gathered.items():
        if documents:
            yield _Batch(documents, side)


def _encode(batches: Iterable[_Batch], tokenizer: Tokenizer, workers: int) -> Iterator[_Encoded]:
    if workers == 1:
        return (_encode_batch(batch, tokenizer) for batch in batches)
    return ordered_map(_encode_in_worker, batches, workers=workers, initializer=_start_worker, initargs=(tokenizer,))


def _encode_batch(batch: _Batch, tokenizer: Tokenizer) -> _Encoded:
    ids: list[int] = []
    end_of_text = tokenizer.special_tokens[END_OF_TEXT]
    for document in batch.documents:
        ids += tokenizer.encode(document, allowed_special=set())
        ids.append(end_of_text)
    num_bytes = sum(len(document.encode("utf-8")) for document in batch.documents)
    return _Encoded(np.array(ids, dtype=np.uint32), len(batch.documents), num_bytes, batch.validation)


_worker_tokenizer: Tokenizer | None = None
"""The tokenizer of a worker process, sent once and not with every batch."""


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode_in_worker(batch: _Batch) -> _Encoded:
    assert _worker_tokenizer is not None
    return _encode_batch(batch, _worker_tokenizer)


def _writer(path: Path, tokenizer: Tokenizer) -> TokenFileWriter:
    return TokenFileWriter(
        path,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.eos_token_id,
        tokenizer_sha256=tokenizer.sha256(),
    )


def _check_paths(sources: Sequence[Path], valid_sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raise `DataError` if a file would be overwritten by its own tokens, or be on both sides."""
    inputs = {path.resolve() for path in (*sources, *valid_sources)}
    for output in outputs:
        if output.is_dir():
            raise DataError(f"{output}: is a folder; name a file in it, {output / 'train.dat'} for example")
        if output.resolve() in inputs:
            raise DataError(f"{output}: is one of the sources, and would be overwritten; choose another output")
    both = {path.resolve() for path in sources} & {path.resolve() for path in valid_sources}
    if both:
        raise DataError(f"{min(both)}: is given both for training and for validation; leave it out of one")


def _check_filled(
    writers: dict[bool, TokenFileWriter], sources: Sequence[Path], valid_sources: Sequence[Path], fraction: float
) -> None:
    if not writers[False].num_tokens:
        raise DataError(f"{_named(sources)}: no document is left for training; is the text empty?")
    if True in writers and not writers[True].num_tokens:
        if valid_sources:
            raise DataError(f"{_named(valid_sources)}: holds no document for validation; is the text empty?")
        raise DataError(
            f"{_named(sources)}: none of {writers[False].num_documents} documents fell to validation "
            f"at valid_fraction = {fraction}; raise it, or name other files as valid_sources"
        )


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (" …" if len(paths) > 3 else "")


def _text_size(path: Path) -> int:
    """Return the bytes of text in a file; of a compressed one about, since text shrinks to a third or quarter."""
    return path.stat().st_size * (4 if path.suffix in COMPRESSED_SUFFIXES else 1)


def _describe(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [{"path": str(path), "bytes": path.stat().st_size} for path in paths]


class _Meter:
    """Joins what the reader and the writers know into one progress report."""

    def __init__(self, sources: Sequence[Path], valid_sources: Sequence[Path], progress: Progress | None) -> None:
        self.tokens = 0
        self._source_bytes = sum(path.stat().st_size for path in sources)
        self._total = self._source_bytes + sum(path.stat().st_size for path in valid_sources)
        self._progress = progress

    def read_sources(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total, self.tokens)

    def read_valid_sources(self, done: int) -> None:
        self.read_sources(self._source_bytes + done)
