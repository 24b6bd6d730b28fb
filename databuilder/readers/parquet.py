"""Parquet: one document per row, in a column of strings. Needs pyarrow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from databuilder import pieces
from databuilder.pieces import Piece, Reading, TextCounts
from databuilder.readers.jsonl import document_pieces, missing_field
from databuilder.source_file import InputSplit, SourceFile
from databuilder.utf8 import Utf8, is_valid
from transformerlm.utils.errors import DataError, MissingDependencyError
from transformerlm.utils.text_files import clear_errors, opened

MAX_ROWS = 1024
"""Rows decoded together; fewer if documents are long."""


def cut_row_groups(file: SourceFile, split_bytes: int) -> list[tuple[int, int, int]]:
    """Return the splits of a file: first row group, last (exclusive), and stored bytes."""
    with _opened(file.name) as parquet:
        metadata = parquet.metadata
        sizes = [_stored_bytes(metadata.row_group(number)) for number in range(metadata.num_row_groups)]
    ranges: list[tuple[int, int, int]] = []
    begin = 0
    for number in range(len(sizes)):
        num_bytes = sum(sizes[begin : number + 1])
        if num_bytes >= split_bytes or number + 1 == len(sizes):
            ranges.append((begin, number + 1, num_bytes))
            begin = number + 1
    return ranges


def read_row_groups(
    split: InputSplit, reading: Reading, counts: TextCounts, on_read: Callable[[int], None] | None
) -> Iterator[list[Piece]]:
    """Yield the documents of a split's row groups. Raises `DataError` with the number of a bad row."""
    name = split.source.name
    utf8 = Utf8(name, reading.errors, counts)
    with _opened(name) as parquet:
        metadata = parquet.metadata
        groups = [metadata.row_group(number) for number in range(split.begin, split.end)]
        row = sum(metadata.row_group(number).num_rows for number in range(split.begin))
        last_row = row + sum(group.num_rows for group in groups)
        num_rows = last_row - row
        for batch in parquet.iter_batches(
            batch_size=_rows_together(groups, _column_index(parquet, name, reading.text_field)),
            row_groups=range(split.begin, split.end),
            columns=[reading.text_field],
            use_threads=False,
        ):
            texts = _texts(batch.column(0), name, row, utf8, counts, skip_null=reading.skip_null)
            row += batch.num_rows
            if on_read is not None:
                on_read(round(split.num_bytes * (1 - (last_row - row) / max(1, num_rows))))
            yield document_pieces(texts, counts)


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """Open a Parquet file; pyarrow's errors inside the context become `DataError`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(f"{name}: Parquet needs pyarrow: uv sync --extra parquet") from None
    with clear_errors(name), opened(name) as file:
        try:
            # Buffered: pages are decoded one by one, not a whole column of a row group.
            yield parquet.ParquetFile(file, buffer_size=1 << 20)
        except pyarrow.ArrowException as error:
            raise DataError(f"{name}: damaged Parquet file ({error}); download it again") from error


def _stored_bytes(group: Any) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _column_index(parquet: Any, name: str, field: str) -> int:
    """Return the index of the text column. Raises `DataError` if it is missing, ambiguous, or not text."""
    import pyarrow

    schema = parquet.schema_arrow
    if field not in schema.names:
        raise DataError(f"{name}: the table {missing_field(field, schema.names)}")
    if schema.names.count(field) > 1:
        raise DataError(f"{name}: the table has several columns named {field!r}; rename all but one")
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    strings = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    if kind not in (*strings, pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view()):
        raise DataError(
            f"{name}: the field {field!r} is of type {kind}, not string; set input.text_field to one that is"
        )
    paths = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    return paths.index(field)


def _rows_together(groups: list[Any], column: int) -> int:
    """Return the number of rows with about `PIECE_BYTES` of text."""
    num_rows = sum(group.num_rows for group in groups)
    num_bytes = sum(group.column(column).total_uncompressed_size for group in groups)
    return max(1, min(MAX_ROWS, pieces.PIECE_BYTES * num_rows // max(1, num_bytes)))


def _texts(column: Any, name: str, row: int, utf8: Utf8, counts: TextCounts, *, skip_null: bool) -> list[bytes]:
    """Return the texts of a batch; its first row is row `row` of the file."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    valid: list[bytes] = []
    for number, text in enumerate(texts, row):
        if text is None:
            if not skip_null:
                raise DataError(
                    f"{name}: row {number} has no text (null); set input.skip_null = true to leave such rows out"
                )
            counts.documents_null += 1
            continue
        if is_valid(text):
            valid.append(text)
            continue
        checked, _ = utf8.check(text, 0, where=f"in row {number} at byte {{}}")
        if checked is not None:
            valid.append(checked)
        else:
            counts.bytes_read += len(text)
            counts.bytes_not_utf8 += len(text)
            counts.documents_not_utf8 += 1
    return valid
