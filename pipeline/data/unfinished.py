"""What a `prepare` that was stopped, or found bad files, has decoded already. The next one goes on there."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.left_out import LeftOut
from pipeline.data.splits import Entry

LIST = "decoded.jsonl"
_VALUES = attrgetter(*(field.name for field in fields(Entry)))


@dataclass(frozen=True)
class Chunk:
    """Pictures on end, decoded."""

    stamp: str  # of their source files
    results: Sequence[Entry | LeftOut]  # LeftOut: it cannot be read
    hashes: np.ndarray  # of the squares, N x 16 bytes
    sums: np.ndarray  # over the pixels of a square, and over their squares: N x 2 x channels

    def as_line(self, start: int) -> str:
        results = list(map(_VALUES, self.results))
        return json.dumps([start, self.stamp, results, self.hashes.tobytes().hex(), self.sums.tolist()])

    @classmethod
    def of_line(cls, line: str) -> "tuple[int, Chunk]":
        start, stamp, results, hashes, sums = json.loads(line)
        by_picture = np.frombuffer(bytes.fromhex(hashes), np.uint8).reshape(len(results), -1)
        return start, cls(stamp, [Entry(*each) for each in results], by_picture, np.array(sums, np.int64))


class Unfinished:
    """A folder for the pictures, and a list of those that are decoded, which is dropped for another `key`."""

    def __init__(self, folder: Path, key: Any) -> None:
        self.file, first = folder / LIST, json.dumps(key, sort_keys=True)
        self.known: dict[int, Chunk] = {}  # by the position of its first picture
        lines = _lines(self.file)
        with suppress(ValueError, TypeError):  # a power cut may leave anything
            if next(lines, None) == first:
                self.known = dict(map(Chunk.of_line, lines))
        if not self.known:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self.file.write_text(first + "\n", "utf-8")

    def add(self, start: int, chunk: Chunk) -> None:
        """Call it when the pictures are written. If one of them is bad, all are tried again next time."""
        if all(isinstance(each, Entry) for each in chunk.results):
            with self.file.open("a", encoding="utf-8") as file:
                file.write(chunk.as_line(start) + "\n")


def _lines(file: Path) -> Iterator[str]:
    """All whole lines. What a kill left after the last one is cut off."""
    if not file.is_file():
        return
    with file.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                os.truncate(file, stream.tell() - len(line))
                return
            yield line.decode()[:-1]
