"""Writes the file that `images.py` reads."""

import os
import shutil
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.data.images import FILE, ORDER
from pipeline.files import save_array, write_at

HEADER = 128  # bytes before the first picture, for every number of pictures


class ImageWriter:
    """Writes pictures to places in a file, from any thread and in any order. What was there before stays."""

    name = FILE

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        self.shape, self.stride, self.file = (
            (size, size, channels),
            size * size * channels,
            folder / self.name,
        )
        self.handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.handle)

    def write(self, place: int, pixels: np.ndarray) -> np.ndarray:
        """Write pictures from this place on; returned is what they are when they are read."""
        write_at(self.handle, np.ascontiguousarray(pixels).reshape(-1).data, HEADER + place * self.stride)
        return pixels

    def read(self, places: range) -> np.ndarray:
        """Pictures on end; fewer at the end of the file."""
        content = os.pread(self.handle, len(places) * self.stride, HEADER + places.start * self.stride)
        return np.frombuffer(content[: len(content) // self.stride * self.stride], np.uint8).reshape(
            -1, *self.shape
        )

    def finish(self, kept: np.ndarray, out: Path) -> None:
        """Leave the pictures at these places in the folder `out`, and a list of where each of them is then.

        The last ones of the file fill the gaps, so few are moved.
        """
        gaps = np.setdiff1d(np.arange(len(kept)), kept)
        moved = np.sort(kept[kept >= len(kept)])
        for old, new in zip(moved.tolist(), gaps.tolist(), strict=True):
            self.write(new, self.read(range(old, old + 1)))
        os.ftruncate(self.handle, HEADER + len(kept) * self.stride)
        write_at(self.handle, _header((len(kept), *self.shape)), 0)
        places = kept.astype(np.int64)
        places[kept >= len(kept)] = gaps[np.searchsorted(moved, kept[kept >= len(kept)])]
        save_array(out / ORDER, places)
        shutil.move(self.file, out / FILE)


def _header(shape: tuple[int, ...]) -> bytes:
    """Of numpy's format. It leaves room for any number of pictures."""
    written = BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert written.tell() == HEADER
    return written.getvalue()
