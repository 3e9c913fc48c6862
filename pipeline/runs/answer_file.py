"""One part of a teacher's answers on disk, such as its logits: for each view, a place for every image."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.files import locked, naming
from pipeline.settings import InputError

PRECISION = np.dtype(np.float16)


def bytes_of(shape: tuple[int, ...]) -> int:
    """Of one answer of this shape."""
    return math.prod(shape) * PRECISION.itemsize


class BeyondPrecision(Exception):
    """An answer has a number that the precision of the file cannot hold."""


class AnswerFile:
    """Answers of one shape to the views of `rows` images, in two files.

    `<name>.answers` has the numbers: those of view v of row r are at position v * rows + r. `<name>.there`
    has a byte for each position, which is 1 once its answer is on the disk. So what a stopped process has
    left half-written does not count. Positions that nobody fills take no space on most file systems.
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], *, rows: int, views: int) -> None:
        self.name, self.shape, self.rows, self.views = name, shape, rows, views
        plain = "".join(c if c.isalnum() or c in " ._-" else f"%{ord(c):x}" for c in name).replace(" ", "-")
        self.answers, self.there = folder / f"{plain}.answers", folder / f"{plain}.there"
        self.bytes = bytes_of(shape)
        with locked(folder / "grow.lock"):
            _grow(self.answers, views * rows * self.bytes)
            _grow(self.there, views * rows)

    def lacks(self, view: int, rows: np.ndarray) -> np.ndarray:
        """For each of these rows, whether its answer to the view isn't there."""
        start = view * self.rows
        is_missing: np.ndarray = np.fromfile(self.there, np.uint8, self.rows, offset=start)[rows] == 0
        return is_missing

    def write(self, view: int, rows: np.ndarray, answers: Tensor) -> None:
        """First the answers, and when they are on the disk, that they are there."""
        with np.errstate(over="ignore"):
            numbers = answers.cpu().numpy().astype(PRECISION)
        if not np.isfinite(numbers).all():
            raise BeyondPrecision(self.name)
        positions = [view * self.rows + int(row) for row in rows]
        with _open(self.answers) as file:
            for position, each in zip(positions, numbers, strict=True):
                _put(file, each.tobytes(), position * self.bytes)
        with _open(self.there) as file:
            for position in positions:
                _put(file, b"\1", position)

    def read(self, view: int, rows: np.ndarray) -> Tensor:
        """The answers to a view of these rows, in float32. They must be there."""
        return torch.from_numpy(self._mapped[view, rows].astype(np.float32))

    @cached_property
    def _mapped(self) -> np.ndarray:
        return np.memmap(self.answers, PRECISION, "r", shape=(self.views, self.rows, *self.shape))


def _put(file: int, content: bytes, position: int) -> None:
    while content:  # on a disk that is nearly full, less may be written than asked
        done = os.pwrite(file, content, position)
        content, position = content[done:], position + done


def _grow(file: Path, size: int) -> None:
    with naming(file), file.open("ab") as stream:
        if stream.tell() < size:
            stream.truncate(size)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """A file to write into. At the end of the block all of it is on the disk."""
    file = os.open(path, os.O_WRONLY)
    try:
        yield file
        os.fsync(file)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}). Make room on this disk (the folder above may be "
            "deleted while nothing trains), or lower augment.views_gb or augment.views."
        ) from error
    finally:
        os.close(file)
