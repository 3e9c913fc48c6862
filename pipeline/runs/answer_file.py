"""One part of a teacher's answers on disk, such as its pooled embeddings: a place for every view and image.

What is on the disk is swept from time to time, but not what is in use.
"""

import fcntl
import math
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.files import naming, write_at
from pipeline.settings import InputError

PRECISION = np.dtype(np.float16)
ANSWERS, THERE = ".answers", ".there"
LOCK = ".lock"  # of the file beside the folder of all answers: held by who opens files, and by who sweeps
KEPT = 4  # times augment.views_gb: so much that nobody uses may stay


def bytes_of(shape: tuple[int, ...]) -> int:
    """Of one answer of this shape."""
    return math.prod(shape) * PRECISION.itemsize


def path_of(folder: Path, name: str, suffix: str) -> Path:
    """Of one of the files of a part."""
    plain = "".join(c if c.isalnum() or c in " ._-" else f"%{ord(c):x}" for c in name).replace(" ", "-")
    return folder / f"{plain}{suffix}"


def views_there(folder: Path, name: str, *, rows: int, views: int) -> np.ndarray:
    """For each row, to how many of these views the answer is there. Nothing is opened for use."""
    file = path_of(folder, name, THERE)
    if not file.exists():
        return np.zeros(rows, np.int32)
    count: np.ndarray = np.fromfile(file, np.uint8).reshape(-1, rows)[:views].sum(0, dtype=np.int32)
    return count


class BeyondPrecision(Exception):
    """An answer has a number that the precision of the file cannot hold."""


class AnswerFile:
    """Answers of one shape to the views of `rows` images, in two files.

    `<name>.answers` has the numbers: those of view v of row r are at position v * rows + r. `<name>.there`
    has a byte for each position, which is 1 once its answer is on the disk. So what a stopped process has
    left half-written does not count. Positions that nobody fills take no space on most file systems.

    The files are not swept as long as this object exists. Make it while you hold `LOCK`.
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], *, rows: int, views: int) -> None:
        self.name, self.shape, self.rows, self.views = name, shape, rows, views
        self.answers, self.there = (path_of(folder, name, suffix) for suffix in (ANSWERS, THERE))
        self.bytes = bytes_of(shape)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.answers.exists():
            self.there.unlink(missing_ok=True)
        _grow(self.answers, views * rows * self.bytes)
        _grow(self.there, views * rows)
        weakref.finalize(self, os.close, _in_use(self.there))

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
            raise BeyondPrecision(f"{self.name} has numbers that half precision cannot hold")
        positions = [view * self.rows + int(row) for row in rows]
        with _open(self.answers) as file:
            for position, each in zip(positions, numbers, strict=True):
                write_at(file, each.tobytes(), position * self.bytes)
        with _open(self.there) as file:
            for position in positions:
                write_at(file, b"\1", position)

    def read(self, view: int, rows: np.ndarray) -> Tensor:
        """The answers to a view of these rows, in float32. They must be there."""
        return torch.from_numpy(self._mapped[view, rows].astype(np.float32))

    @cached_property
    def _mapped(self) -> np.ndarray:
        return np.memmap(self.answers, PRECISION, "r", shape=(self.views, self.rows, *self.shape))


def sweep(answers: Path, views_gb: float) -> float:
    """Remove what was used longest ago, until all that nobody uses takes at most `KEPT` times `views_gb`.

    Call it while you hold `LOCK`, so that nobody begins to use a file meanwhile. Returned are the GB removed.
    """
    unused = [file for file in answers.glob(f"*/*{ANSWERS}") if not _is_used(file.with_suffix(THERE))]
    total = removed = 0.0
    for file in sorted(unused, key=lambda file: _last_use(file.with_suffix(THERE)), reverse=True):
        size = file.stat().st_blocks * 512 / 1e9
        total += size
        if total > KEPT * views_gb:
            file.with_suffix(THERE).unlink(missing_ok=True)  # first, as answers alone are never read
            file.unlink()
            removed += size
            if not any(file.parent.glob(f"*{ANSWERS}")):
                shutil.rmtree(file.parent)
    return removed


def _in_use(there: Path) -> int:
    """A descriptor that tells others, until it is closed, that this file is used."""
    file = os.open(there, os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(there)
    return file


def _is_used(there: Path) -> bool:
    if not there.exists():
        return False
    with there.open("r+b") as file:  # some network file systems lock only what can be written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _last_use(there: Path) -> float:
    return there.stat().st_mtime if there.exists() else 0.0


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
