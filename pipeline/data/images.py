"""The pixels of a store: a file with one picture after the other, and the place of each row in it.

Pictures lie in the order in which they were found, so that `prepare` writes them once. They are read by
place, not through a map of the file: of a file that is not in memory, a map would bring in single pages, and
what the system reads ahead around them.
"""

import os
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.settings import InputError

FILE, ORDER = "images.npy", "order.npy"
GAP = 1 << 14  # bytes between two pictures that are read with them; more of them cost more than a second call
PART = 1 << 23  # bytes that are read at once, at most


class Images(Protocol):
    """uint8 images N x H x W x C: an array, or anything that makes the asked rows when they are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


class ImageFile:
    """The pictures of the store in `folder` by row. Each is read when it is asked for, by any thread."""

    def __init__(self, folder: Path) -> None:
        mapped: Any = np.load(folder / FILE, mmap_mode="r")  # checks header and length, and reads no picture
        self.folder, self.shape, self.dtype, self.start = folder, mapped.shape, mapped.dtype, mapped.offset
        self.order: np.ndarray = np.load(folder / ORDER)
        if not np.array_equal(np.sort(self.order), np.arange(len(self))):
            raise ValueError(f"{ORDER} does not name every place of {FILE} once")
        self.stride = int(np.prod(self.shape[1:]))
        self.handle = os.open(folder / FILE, os.O_RDONLY)
        weakref.finalize(self, os.close, self.handle)
        if hasattr(os, "posix_fadvise"):  # what lies around a picture is not wanted
            os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        places = np.asarray(self.order[rows])
        found = np.empty((places.size, *self.shape[1:]), self.dtype)
        for run in self._runs(places.ravel()):
            self._read_run(run, places.ravel(), found)
        return found.reshape(*places.shape, *self.shape[1:])

    def _runs(self, places: np.ndarray) -> list[np.ndarray]:
        """Positions in `places`, in the order of the file: a part for each stretch that is read at once."""
        by_place = np.argsort(places, kind="stable")
        ordered = places[by_place]
        is_far = np.diff(ordered) > 1 + GAP // self.stride
        is_other_part = np.diff(ordered // max(1, PART // self.stride)) > 0
        return np.split(by_place, np.flatnonzero(is_far | is_other_part) + 1)

    def _read_run(self, run: np.ndarray, places: np.ndarray, found: np.ndarray) -> None:
        if len(run) == 1:
            self._fill(found[run[0]], int(places[run[0]]))
        elif len(run):
            first, last = int(places[run[0]]), int(places[run[-1]])
            stretch = np.empty((last - first + 1, *self.shape[1:]), self.dtype)
            self._fill(stretch, first)
            found[run] = stretch[places[run] - first]

    def _fill(self, pixels: np.ndarray, place: int) -> None:
        """Read what lies from this place on."""
        rest, position = pixels.reshape(-1).data.cast("B"), self.start + place * self.stride
        while rest:
            count = os.preadv(self.handle, [rest], position)
            if not count:
                raise InputError(
                    f"data store {str(self.folder)!r}: {FILE} became shorter while it was read. Run the "
                    "prepare stage again (`dvc repro prepare`)."
                )
            rest, position = rest[count:], position + count
