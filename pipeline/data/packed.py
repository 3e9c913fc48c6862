"""The pictures of a store as JPEG files on end (`data.kept_as: jpeg`). They are decoded at each reading."""

import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.image_writer import ImageWriter
from pipeline.files import save_array, write_at
from pipeline.settings import InputError

FILE, STARTS = "images.pack", "starts.npy"
PLACES = "places"  # the file that is written first
QUALITY = 95
SPARE = 1 << 12  # bytes of a place for what a JPEG file has beside its pixels


def encode(pixels: np.ndarray) -> bytes:
    """A picture H x W x C as a JPEG file, with its colours at full resolution."""
    file = BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def decode(file: bytes) -> np.ndarray:
    """The picture H x W x C in a file of `encode`."""
    pixels = np.asarray(Image.open(BytesIO(file), formats=["JPEG"]))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


class PackWriter(ImageWriter):
    """Gives each picture a place of its own until all are there, in a file with holes, which take no room."""

    name = PLACES

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        super().__init__(folder, size, channels)
        self.room = 2 * self.stride + SPARE

    def write(self, place: int, pixels: np.ndarray) -> np.ndarray:
        """Write pictures from this place on; returned is what they are when they are read."""
        files = [encode(each) for each in pixels]
        for n, file in enumerate(files, start=place):
            assert len(file) < self.room
            write_at(self.handle, len(file).to_bytes(4) + file, n * self.room)
        return np.stack([decode(file) for file in files])

    def read(self, places: range) -> np.ndarray:
        """Pictures on end; fewer where one is missing or damaged."""
        found = np.empty((len(places), *self.shape), np.uint8)
        for n, place in enumerate(places):
            try:
                found[n] = decode(self._file_at(place))
            except (OSError, ValueError):  # Pillow's errors, and another shape
                return found[:n]
        return found

    def finish(self, kept: np.ndarray, out: Path) -> None:
        """Leave the pictures at these places, in this order, in the folder `out`."""
        starts = np.zeros(len(kept) + 1, np.int64)
        with (out / FILE).open("wb") as pack:
            for n, place in enumerate(kept.tolist()):
                starts[n + 1] = starts[n] + pack.write(self._file_at(place))
        save_array(out / STARTS, starts)
        self.file.unlink()

    def _file_at(self, place: int) -> bytes:
        size = int.from_bytes(os.pread(self.handle, 4, place * self.room))
        return os.pread(self.handle, size, place * self.room + 4)


class PackedImages:
    """The pictures of the store in `folder` by row. Each is decoded when it is asked for, by any thread."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts = folder, np.load(folder / STARTS)
        self.handle = os.open(folder / FILE, os.O_RDONLY)
        weakref.finalize(self, os.close, self.handle)
        size = os.fstat(self.handle).st_size
        if self.starts[0] != 0 or (np.diff(self.starts) <= 0).any() or self.starts[-1] != size:
            raise ValueError(f"{STARTS} does not name the pictures in {FILE}")
        self.shape: tuple[int, ...] = (len(self.starts) - 1, *self._picture(0).shape)
        self.threads = min(8, len(os.sched_getaffinity(0)))

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        asked = np.asarray(np.arange(len(self))[rows])
        found = np.empty((asked.size, *self.shape[1:]), self.dtype)

        def fill(n: int) -> None:
            found[n] = self._picture(int(asked.flat[n]))

        with ThreadPoolExecutor(self.threads) as pool:  # Pillow decodes without Python's lock
            list(pool.map(fill, range(asked.size)))
        return found.reshape(*asked.shape, *self.shape[1:])

    def _picture(self, row: int) -> np.ndarray:
        start, end = self.starts[row : row + 2].tolist()
        try:
            return decode(os.pread(self.handle, end - start, start))
        except (OSError, ValueError) as error:
            raise InputError(
                f"data store {str(self.folder)!r}: picture {row} in {FILE} is damaged ({error}). Run "
                "the prepare stage again (`dvc repro prepare`)."
            ) from error
