"""Pictures inside a Parquet file, read as a stream: such a file is often far larger than the memory."""

from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.data.decode import Undecodable
from pipeline.settings import InputError

AT_ONCE = 16  # rows
WAITING = 2048  # rows: threads are never so far apart
BUFFER = 1 << 20  # bytes read ahead; without it, a whole group of rows is read


class ParquetImages:
    """The bytes of row i. Threads that each take some rows on end read the file once, from its start.

    Of the rows that were passed and not asked for yet, the last ones wait in memory.
    """

    def __init__(self, file: Path, column: str) -> None:
        self.file, self.column = file, column
        self.lock = Lock()
        self._restart()

    def __call__(self, i: int) -> bytes:
        with self.lock:
            if i < self.next and i not in self.waiting:  # read before
                self._restart()
            while self.next <= i:
                self.waiting[self.next] = next(self.stream)
                self.next += 1
                self.waiting.pop(self.next - WAITING, None)  # so far back, nobody will ask for it
            value = self.waiting.pop(i)
        if not value:
            raise Undecodable("no bytes", "empty")
        return value

    def _restart(self) -> None:
        self.waiting: dict[int, bytes | None] = {}
        self.next, self.stream = 0, _stream(self.file, self.column)


def check_column(file: Path, column: str) -> None:
    """Raise InputError unless the column holds bytes, or bytes beside a path as Hugging Face has them."""
    from pyarrow import parquet, types

    found = parquet.read_schema(file).field(column).type
    if types.is_struct(found) and found.get_field_index("bytes") >= 0:
        found = found.field("bytes").type
    if not (types.is_binary(found) or types.is_large_binary(found)):
        raise InputError(
            f"data.columns.image: column {column!r} holds {found}, not the bytes of files. Name the column "
            "that holds them."
        )


def _stream(file: Path, column: str) -> Iterator[bytes | None]:
    from pyarrow import parquet

    table = parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    for batch in table.iter_batches(AT_ONCE, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield _bytes(value)


def _bytes(value: Any) -> bytes | None:
    found: bytes | None = value.get("bytes") if isinstance(value, dict) else value
    return found
