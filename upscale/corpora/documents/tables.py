"""Documents that are one field of many records: JSON lines, Parquet and Arrow, as Hugging Face's datasets keep them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from upscale.corpora.archives.decompression import cannot_read, damaged
from upscale.errors import UserError
from upscale.files import parse_json

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff"
LINE_BYTES = 1 << 28
"""The longest line that is read; it is held in memory."""
BATCH_ROWS = 256


def kind_of(path: Path) -> str | None:
    """parquet, arrow (a file or a stream), or None for anything else, by the first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(ARROW_FILE))
    except OSError as error:
        raise cannot_read(path, error) from None
    if head.startswith(PARQUET):
        return "parquet"
    is_stream = head.startswith(ARROW_STREAM) and path.suffix == ".arrow"
    return "arrow" if head == ARROW_FILE or is_stream else None


def lines(stream: io.BufferedIOBase, where: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream with their numbers from 1, each with its end; raises UserError for an endless one."""
    number = 0
    while line := stream.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise UserError(f"{where}, line {number} is longer than {LINE_BYTES:,} bytes: it is no line of a text")
        yield number, line


def json_field(content: bytes, field: str, where: str) -> bytes:
    """The text in a field of a JSON object; raises UserError for anything else."""
    try:
        record = parse_json(content)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({getattr(error, 'msg', error)}): {content[:80]!r}") from None
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        has = f"its fields are {', '.join(map(str, record))[:200]}" if isinstance(record, dict) else "it is no object"
        raise UserError(f"{where} has no text in a field {field!r}: {has}. Give the field with --field.")
    try:
        return record[field].encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the field {field!r} holds half of a character, which has no UTF-8") from None


def check_table(path: Path, kind: str, field: str) -> None:
    """Raises UserError where a table is damaged, has no rows, or no text in the field; reads its description only."""
    with _opened(path, kind, field):
        pass


def texts(path: Path, kind: str, field: str, progress) -> Iterator[tuple[int, bytes]]:
    """Row numbers from 1 and texts of a table's field, without the rows where it is null."""
    number = 0
    with _opened(path, kind, field) as batches:
        for batch in batches:
            batch.validate(full=True)  # else places beyond a text's end, in a damaged table, end the process
            for value in batch.column(batch.schema.get_field_index(field)):
                number += 1
                if value.is_valid:
                    text = value.as_py()
                    yield number, text.encode() if isinstance(text, str) else text
    progress(path.stat().st_size)


@contextmanager
def _opened(path: Path, kind: str, field: str) -> Iterator[Iterator[Any]]:
    """Batches of a table with this field; what its library raises, here or while it is read, is a UserError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} is a table ({kind}), which the package pyarrow reads: pip install pyarrow") from None
    try:
        with closing(pyarrow.OSFile(os.fspath(path))) as file:
            if kind == "parquet":
                table = pyarrow.parquet.ParquetFile(file)
                schema, rows = table.schema_arrow, table.metadata.num_rows
                _check_schema(path, schema, rows, field, pyarrow)
                yield table.iter_batches(BATCH_ROWS, columns=[field])
                return
            if file.read(len(ARROW_FILE)) == ARROW_FILE:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                rows = reader.num_record_batches
            else:
                file.seek(0)
                batches = reader = pyarrow.ipc.open_stream(file)
                rows = 1  # a stream tells it at its end only
            _check_schema(path, reader.schema, rows, field, pyarrow)
            yield iter(batches)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise damaged(path, error) from None


def _check_schema(path: Path, schema: Any, rows: int, field: str, pyarrow: Any) -> None:
    if schema.names.count(field) > 1:
        raise UserError(f"{path} has {schema.names.count(field)} fields {field!r}: which one is meant cannot be told")
    if field not in schema.names:
        raise UserError(f"{path} has no field {field!r}; it has {', '.join(schema.names)}. Give one with --field.")
    found = schema.field(field).type
    known = ("string", "large_string", "string_view", "binary", "large_binary")
    if str(found) not in known:
        raise UserError(
            f"{path}: the field {field!r} holds {found}, not text; the fields are {', '.join(schema.names)}"
        )
    if not rows:
        raise UserError(f"{path} holds no document: leave it out, or download it again")
