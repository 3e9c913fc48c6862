"""A store of JPEG files: less disk, nearly the same pixels, and otherwise as a store of pixels."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.folders import picture
from data.rows import assert_rows_are_those_of
from PIL import Image

from pipeline.data import decoding
from pipeline.data.packed import FILE, PackedImages, PackWriter, decode, encode
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.stand_in import stand_in
from pipeline.data.store import Store
from pipeline.report.pictures import open_images
from pipeline.settings import InputError

SIZE = 16


def pictures(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, channels), dtype=np.uint8)


def written(folder: Path, pixels: np.ndarray, kept: np.ndarray) -> PackedImages:
    """Row n is picture kept[n]."""
    with PackWriter(folder, SIZE, pixels.shape[3]) as writer, ThreadPoolExecutor(8) as pool:
        places = np.random.default_rng(1).permutation(len(pixels)).tolist()
        list(pool.map(lambda place: writer.write(place, pixels[place : place + 1]), places))
        writer.finish(kept, folder)
    return PackedImages(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_those_of_an_array(channels: int, tmp_path: Path) -> None:
    pixels, kept = pictures(60, channels), np.random.default_rng(2).permutation(60)[:50]
    file = written(tmp_path, pixels, kept)
    truth = np.stack([decode(encode(each)) for each in pixels[kept]])
    assert_rows_are_those_of(file, truth)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.pack", "starts.npy"]


def test_a_write_returns_what_will_be_read(tmp_path: Path) -> None:
    pixels = pictures(6)
    with PackWriter(tmp_path, SIZE, 3) as writer:
        returned = writer.write(2, pixels)
        assert not np.array_equal(returned, pixels)
        assert np.array_equal(writer.read(range(2, 8)), returned)
        assert len(writer.read(range(2, 12))) == 6
        assert len(writer.read(range(1, 4))) == 0


def test_colours_are_kept_at_full_resolution() -> None:
    """A red line of one pixel on blue: with halved colours it would be off by a hundred."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 2], pixels[:, 5] = 255, (255, 0, 0)
    assert np.abs(decode(encode(pixels)).astype(int) - pixels).max() < 20


def photographs(folder: Path, count: int = 30, side: int = 96) -> Path:
    """Pictures as smooth as photographs are."""
    for n in range(count):
        place = folder / f"raw/{'ab'[n % 2]}/{n}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        few = np.random.default_rng(n).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(few).resize((side, side), Image.Resampling.BICUBIC).save(place)
    return folder / "raw"


def config(root: Path, **settings: Any) -> DataConfig:
    return DataConfig(**{"source": "folder", "root": str(root), "size": 64, "kept_as": "jpeg"} | settings)


def test_a_store_of_jpeg_files_is_small_and_nearly_the_same(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    for kept_as in ("jpeg", "pixels"):
        prepare(config(root, kept_as=kept_as), tmp_path / kept_as)
    small, usual = (Store.open(tmp_path / kept_as) for kept_as in ("jpeg", "pixels"))
    assert np.array_equal(small.labels, usual.labels)
    off = np.abs(small.images[:].astype(int) - usual.images[:])
    assert 0 < off.mean() < 2
    assert (tmp_path / "jpeg" / FILE).stat().st_size < usual.images[:].nbytes / 4
    assert not (tmp_path / "jpeg/images.npy").exists()
    assert small.content != usual.content
    assert small.manifest["splits"] == usual.manifest["splits"]
    pixels = small.images[small.indices("train")] / 255
    assert small.mean == pytest.approx(pixels.mean((0, 1, 2)))  # of what training will read
    images = open_images(tmp_path / "jpeg")
    assert images is not None
    assert np.array_equal(images[:], small.images[:])


def test_it_is_known_before_how_much_disk_it_takes(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    found = {kept_as: stand_in(config(root, kept_as=kept_as)) for kept_as in ("jpeg", "pixels")}
    prepare(config(root), tmp_path / "store")
    assert found["jpeg"].kept == pytest.approx((tmp_path / "store" / FILE).stat().st_size, rel=0.01)
    assert found["pixels"].kept == 30 * 64 * 64 * 3
    few: Any = found["jpeg"].store.images
    truth = Store.open(tmp_path / "store").images[:]
    assert {each.tobytes() for each in few.few} == {each.tobytes() for each in truth}


def test_a_stopped_prepare_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cfg = photographs(tmp_path), config(tmp_path / "raw")
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 4 * 64 * 64 * 3)  # four pictures in a chunk

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise Stop

    with pytest.raises(Stop):
        prepare(cfg, tmp_path / "stopped", on_decoded=stop, work=tmp_path / "work")
    places = (tmp_path / "work/places").stat()
    assert places.st_blocks * 512 < places.st_size / 2  # a file with holes
    decode_one, again = decoding._decode_one, 0

    def counted(*args: Any) -> Any:
        nonlocal again
        again += 1
        return decode_one(*args)

    monkeypatch.setattr(decoding, "_decode_one", counted)
    prepare(cfg, tmp_path / "found", work=tmp_path / "work")
    assert 12 <= again <= 18
    prepare(cfg, tmp_path / "wanted")
    for name in (FILE, "starts.npy", "manifest.json", "files.csv"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes()
    assert root.is_dir()
    assert not (tmp_path / "work").exists()


def test_the_other_form_does_not_go_on_with_these_pictures(tmp_path: Path) -> None:
    keys = [decoding.key_of(config(tmp_path, kept_as=kept_as)) for kept_as in ("jpeg", "pixels")]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("damage", ["shorter", "longer", "another picture's start", "no file of starts"])
def test_files_that_do_not_belong_together_are_refused(damage: str, tmp_path: Path) -> None:
    prepare(config(photographs(tmp_path)), tmp_path / "store")
    pack, starts = tmp_path / "store" / FILE, tmp_path / "store/starts.npy"
    match damage:
        case "shorter":
            os.truncate(pack, pack.stat().st_size - 1)
        case "longer":
            pack.write_bytes(pack.read_bytes() + b" ")
        case "another picture's start":
            changed = np.load(starts)
            changed[3] = changed[2]
            np.save(starts, changed)
        case _:
            starts.unlink()
    with pytest.raises(InputError, match=r"Run the prepare stage again"):
        Store.open(tmp_path / "store")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, pictures(3), np.arange(3))
    with (tmp_path / FILE).open("r+b") as pack:
        pack.seek(int(file.starts[1]))
        pack.write(bytes(40))
    assert file[2].shape == (SIZE, SIZE, 3)
    with pytest.raises(InputError, match=r"picture 1 in images\.pack is damaged .*prepare"):
        file[:]


def test_a_grey_store(tmp_path: Path) -> None:
    for n in range(8):
        place = tmp_path / f"raw/{'ab'[n % 2]}/{n}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(n).convert("L").save(place)
    prepare(config(tmp_path / "raw", channels=1, size=8), tmp_path / "store")
    assert Store.open(tmp_path / "store").images.shape == (8, 8, 8, 1)


def test_files_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(5):
        (tmp_path / str(n)).mkdir()
        written(tmp_path / str(n), pictures(2), np.arange(2))
        shutil.rmtree(tmp_path / str(n))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bad_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kept_as"):
        config(tmp_path, kept_as="png")
