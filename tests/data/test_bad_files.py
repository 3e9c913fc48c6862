"""What happens to a folder of pictures in which some files are bad."""

import csv
import os
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from data.folders import picture, tree
from PIL import Image

from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import Manifest, Store
from pipeline.settings import InputError


def encoded(image: Image.Image, form: str) -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


def with_a_huge_header() -> bytes:
    found = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    found[16:24] = (60_000).to_bytes(4, "big") * 2
    found[29:33] = zlib.crc32(bytes(found[12:29])).to_bytes(4, "big")
    return bytes(found)


def with_wrong_sums() -> bytes:
    found = bytearray(encoded(picture(3), "PNG"))
    found[50] ^= 255
    return bytes(found)


LARGE = picture(5, size=(200, 200))
# what makes a bad file, and its kind
CONTENTS: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"<html>404</html>", "not an image"),
    (b"version https://git-lfs.github.com/spec/v1\n", "not an image"),
    (encoded(LARGE, "JPEG")[:5000], "truncated"),
    (with_wrong_sums(), "damaged"),
    (with_a_huge_header(), "too large"),
    (encoded(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF"), "unknown range"),
]
OTHERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.symlink_to("nowhere.png"), "dangling link"),
    (lambda path: path.symlink_to(path.name), "unreadable"),
    (os.mkfifo, "not a file"),
]
KINDS = [kind for _, kind in (*CONTENTS, *OTHERS)]
COUNTS = {kind: 4 * KINDS.count(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 files, of which 40 are bad: four of each of ten kinds."""
    root = tree(tmp_path_factory.mktemp("raw"), {"cat": 480, "dog": 480})
    for n in range(4):
        folder = root / ("cat", "dog")[n % 2]
        for k, (content, _) in enumerate(CONTENTS):
            (folder / f"bad-{n}-{k}.png").write_bytes(content)
        for k, (make, _) in enumerate(OTHERS, len(CONTENTS)):
            make(folder / f"bad-{n}-{k}.png")
    return root


def kinds(file: Path) -> Counter[str]:
    with file.open() as stream:
        found = list(csv.DictReader(stream))
    assert all("bad-" in row["path"] and row["reason"] for row in found)
    return Counter(row["kind"] for row in found)


def made(root: Path, out: Path, **settings: object) -> Manifest:
    cfg = DataConfig(**{"source": "folder", "root": str(root), "size": 8} | settings)
    return prepare(cfg, out / "store", bad_files=out / ".work/bad_files.csv")


def test_by_default_all_bad_files_are_told_and_nothing_is_made(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        made(root, tmp_path)
    message = str(caught.value)
    assert (
        "40 of 1,000 files are no usable images (not an image: 8, damaged: 4, dangling link: 4, " in message
    )
    assert message.count("bad-") == 5
    assert " and 35 more. The whole list is in " in message
    assert "data.on_bad: skip" in message
    assert "\n" not in message
    assert kinds(tmp_path / ".work/bad_files.csv") == COUNTS
    assert not (tmp_path / "store/manifest.json").exists()


@pytest.mark.parametrize("max_bad", [0.0, 0.01, 0.0399])
def test_with_skip_too_many_bad_files_are_refused(root: Path, tmp_path: Path, max_bad: float) -> None:
    with pytest.raises(
        InputError, match=rf"That is 4\.00% .* data\.max_bad allows {max_bad:.2%}.*raise data\.max"
    ):
        made(root, tmp_path, on_bad="skip", max_bad=max_bad)
    assert kinds(tmp_path / ".work/bad_files.csv") == COUNTS


def test_with_skip_a_few_are_left_out_counted_and_listed(root: Path, tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work/bad_files.csv").write_text("of an earlier try")
    manifest = made(root, tmp_path, on_bad="skip", max_bad=0.04)
    assert manifest["left_out"] == COUNTS
    assert next(iter(manifest["left_out"])) == "not an image"  # the most frequent kind first
    assert manifest["per_class"] == {
        split: {"cat": n, "dog": n} for split, n in (("train", 336), ("val", 48), ("test", 96))
    }
    assert kinds(tmp_path / "store/left_out.csv") == COUNTS
    assert not (tmp_path / ".work/bad_files.csv").exists()
    store = Store.open(tmp_path / "store")
    pixels = {image.tobytes() for image in store.images[:]}
    assert len(pixels) == 960
    assert bytes(8 * 8 * 3) not in pixels  # a place in which nothing was decoded


def test_what_is_skipped_moves_no_other_picture(root: Path, tmp_path: Path) -> None:
    made(root, tmp_path, on_bad="skip", max_bad=1.0)
    good = tree(tmp_path / "good", {"cat": 480, "dog": 480})
    made(good, tmp_path / "other")
    for name in ("labels.npy", "files.csv"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "other/store" / name).read_bytes(), (
            name
        )
    one, other = (Store.open(tmp_path / place) for place in ("store", "other/store"))
    assert np.array_equal(one.images[:], other.images[:])
    assert (one.content, one.mean, one.std) == (other.content, other.mean, other.std)


def test_bad_unlabelled_files_are_bad_files_too(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 5, "dog": 5, "unlabelled": 3})
    (root / "unlabelled/a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 14 files .*unlabelled/a\.png \(the file is empty\)"):
        made(root, tmp_path)
    assert made(root, tmp_path, on_bad="skip", max_bad=0.1)["unlabelled"] == 3


def test_a_class_of_bad_files_only_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 90, "dog": 3})
    for path in (root / "dog").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="class 'dog' has no usable image"):
        made(root, tmp_path, on_bad="skip", max_bad=0.1)


def test_files_that_are_no_pictures_are_counted_and_listed(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 9, "dog": 9})
    for name in ("cat/notes.txt", "dog/large.jpg.part", "dog/new.jxl"):
        (root / name).write_text("no picture")
    picture(99).save(root / "lost.png")
    manifest = prepare(DataConfig(source="folder", root=str(root), size=8), tmp_path / "out")
    expected = {
        "cat/notes.txt": "other file",
        "dog/large.jpg.part": "partial download",
        "dog/new.jxl": ".jxl picture",
        "lost.png": "outside of class folders",
    }
    assert manifest["left_out"] == dict.fromkeys(sorted(expected.values()), 1)
    with (tmp_path / "out/left_out.csv").open() as file:
        assert {row["path"]: row["kind"] for row in csv.DictReader(file)} == expected
