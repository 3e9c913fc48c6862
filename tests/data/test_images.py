"""The file of pixels: written in any order, read by row."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data.rows import assert_rows_are_those_of

from pipeline.data import images as images_module
from pipeline.data.image_writer import ImageWriter
from pipeline.data.images import ImageFile
from pipeline.settings import InputError

SIZE = 4


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def written(folder: Path, pixels: np.ndarray, kept: np.ndarray) -> ImageFile:
    """Row n is picture kept[n]."""
    folder.mkdir(exist_ok=True)
    with ImageWriter(folder, SIZE, 3) as writer:
        for place in reversed(range(len(pixels))):
            writer.write(place, pixels[place : place + 1])
        writer.finish(kept, folder)
    return ImageFile(folder)


@pytest.fixture
def many(tmp_path: Path) -> tuple[ImageFile, np.ndarray]:
    pixels, order = pictures(300), np.random.default_rng(1).permutation(300)
    return written(tmp_path, pixels, order), pixels[order]


@pytest.mark.parametrize("gap", [0, 200, 1 << 14])
@pytest.mark.parametrize("part", [1, 500, 1 << 23])
def test_rows_are_those_of_an_array(
    many: tuple[ImageFile, np.ndarray], gap: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, truth = many
    monkeypatch.setattr(images_module, "GAP", gap)
    monkeypatch.setattr(images_module, "PART", part)
    assert_rows_are_those_of(file, truth)
    assert sum(bool(image.any()) for image in file) == 300  # type: ignore[attr-defined]


def test_neighbours_are_read_at_once_and_distant_ones_alone(
    many: tuple[ImageFile, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = many
    calls: list[tuple[int, int]] = []
    plain = os.preadv

    def counted(handle: int, buffers: list[memoryview], position: int) -> int:
        calls.append(((position - file.start) // file.stride, buffers[0].nbytes // file.stride))
        return plain(handle, buffers, position)

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(images_module, "GAP", 2 * file.stride)
    row_at = np.argsort(file.order)
    file[row_at[[50, 3, 52, 4, 9, 50]]]
    assert calls == [(3, 2), (9, 1), (50, 3)]
    calls.clear()
    monkeypatch.setattr(images_module, "PART", 100 * file.stride)
    file[:]
    assert calls == [(0, 100), (100, 100), (200, 100)]


def test_a_call_may_read_or_write_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda handle, buffers, at: read(handle, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda handle, content, at: write(handle, content[:5], at))
    pixels = pictures(9)
    file = written(tmp_path, pixels, np.arange(9))
    assert np.array_equal(file[:], pixels)


def test_a_file_that_becomes_shorter_is_refused(many: tuple[ImageFile, np.ndarray]) -> None:
    file, _ = many
    os.truncate(file.folder / "images.npy", file.start + 299 * file.stride)
    with pytest.raises(InputError, match=r"became shorter while it was read.*prepare"):
        file[:]


def test_many_threads_read_and_write_at_once(tmp_path: Path) -> None:
    pixels = pictures(400)
    with ImageWriter(tmp_path, SIZE, 3) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda place: writer.write(place, pixels[place : place + 1]), range(400)))
        writer.finish(np.arange(400), tmp_path)
    file = ImageFile(tmp_path)
    asked = np.random.default_rng(3).integers(0, 400, (200, 16))
    with ThreadPoolExecutor(8) as pool:
        for rows, found in zip(asked, pool.map(file.__getitem__, asked), strict=True):
            assert np.array_equal(found, pixels[rows])


@pytest.mark.parametrize("kept", [[0], [5], [4, 2], [5, 0, 3], [0, 1, 2], [5, 4, 3, 2, 1, 0]])
def test_what_is_left_out_takes_no_room(tmp_path: Path, kept: list[int]) -> None:
    pixels = pictures(6)
    file = written(tmp_path, pixels, np.array(kept))
    assert np.array_equal(file[:], pixels[kept])
    assert np.load(tmp_path / "images.npy").shape == (len(kept), SIZE, SIZE, 3)
    # what lies before the end has not moved
    assert all(file.order[row] == place for row, place in enumerate(kept) if place < len(kept))


def test_the_file_is_one_of_numpy_whatever_its_size(tmp_path: Path) -> None:
    for size, channels in ((8, 1), (512, 3)):
        with ImageWriter(tmp_path, size, channels) as writer:
            writer.finish(np.arange(1), tmp_path)
        assert np.load(tmp_path / "images.npy").shape == (1, size, size, channels)
    from pipeline.data.image_writer import HEADER, _header

    assert len(_header((10**12, 512, 512, 3))) == len(_header((9, 8, 8, 1))) == HEADER


def test_files_are_closed(tmp_path: Path) -> None:
    pixels = pictures(3)

    def count() -> int:
        return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0

    before = count()
    for _ in range(5):
        assert written(tmp_path, pixels, np.arange(3))[0].any()
    assert count() == before
