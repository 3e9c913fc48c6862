import os
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.folders import fill, picture, tree
from PIL import Image
from pydantic import ValidationError

from pipeline.data import sources, walk
from pipeline.data.decode import Undecodable
from pipeline.data.items import Source
from pipeline.data.left_out import LeftOut
from pipeline.data.sources import DataConfig
from pipeline.data.store import NO_LABEL, UNLABELLED
from pipeline.settings import InputError


def folder(root: Path) -> Source:
    return sources.find(DataConfig(source="folder", root=str(root), size=8))


def listed(source: Source) -> list[tuple[str, str | None, str]]:
    return [(source.classes[item.label], item.split, item.path) for item in source.items]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"source": "torchvision:"}, "source"),
        ({"size": 7}, "size"),
        ({"size": 513}, "size"),
        ({"channels": 2}, "channels"),
        ({"val": 0}, "val"),
        ({"test": 1.0}, "test"),
        ({"val": 0.5, "test": 0.5}, r"data\.val \+ data\.test is 1"),
        ({"roof": "x"}, "roof"),
        ({"test": float("nan")}, "test"),
        ({"source": "manifest"}, r"data\.table: source `manifest` needs the name"),
        ({"table": "a.csv"}, r"data\.table: .* The source is 'digits'"),
        ({"source": "manifest", "table": "../a.csv"}, r"data\.table: '\.\./a\.csv' must be the path"),
        ({"source": "manifest", "table": "/a.csv"}, r"data\.table: '/a\.csv' must be the path"),
        ({"source": "manifest", "table": "a.xlsx"}, r"end in one of \.csv, \.jsonl, \.parquet"),
        ({"source": "manifest", "table": "a.csv", "columns": {"file": "x"}}, r"columns\.file"),
        ({"columns": {"path": "x"}}, r"data\.columns: only"),
        ({"on_bad": "ignore"}, "on_bad"),
        ({"max_bad": 1.1}, "max_bad"),
        ({"max_bad": -0.1}, "max_bad"),
    ],
)
def test_wrong_settings_name_the_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=f"(?i){field}"):
        DataConfig(**{"source": "digits", "size": 8, **given})


def test_the_digits_are_read() -> None:
    source = sources.find(DataConfig(source="digits", size=8))
    assert len(source.items) == 1797
    assert source.classes == list("0123456789")
    image = source.read(0)
    assert isinstance(image, Image.Image)
    assert image.size == (8, 8)
    assert np.asarray(image).max() > 230


def test_images_are_found_at_any_depth_below_a_class_folder(tmp_path: Path) -> None:
    root = tree(tmp_path, {"dog": 3, "cat/deep/er": 2, "cat": 1})
    for suffix in (".JPG", ".jpeg", ".Bmp", ".gif", ".webp", ".TIF"):
        fill(root / "dog", 1, start=50, suffix=suffix)
    source = folder(root)
    assert source.classes == ["cat", "dog"]
    assert listed(source)[0] == ("cat", None, "cat/0005.png")
    assert [path for name, _, path in listed(source) if name == "cat"] == [
        "cat/0005.png",
        "cat/deep/er/0003.png",
        "cat/deep/er/0004.png",
    ]
    assert len(source.items) == 12
    assert source.read(0) == (root / "cat/0005.png").read_bytes()


def test_other_files_are_counted_and_skipped(tmp_path: Path) -> None:
    root = tree(tmp_path, {"dog": 3, "cat": 3})
    for name in (
        "README.md",
        "dog/labels.csv",
        "cat/deep/x.txt",
        ".hidden.png",
        "cat/.DS_Store",
        ".git/a.png",
        "cat/.thumbs/a.png",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    source = folder(root)
    assert len(source.items) == 6
    assert [(each.path, each.kind) for each in source.left_out] == [
        ("README.md", "other file"),
        ("cat/deep/x.txt", "other file"),
        ("dog/labels.csv", "other file"),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Valid"])
def test_split_folders_give_the_splits(tmp_path: Path, val: str) -> None:
    root = tree(
        tmp_path, {"train/a": 2, "train/b": 1, f"{val}/a": 1, f"{val}/b": 1, "test/a": 1, "test/b": 1}
    )
    (root / "notes").mkdir()
    (root / "notes/a.txt").write_text("x")
    source = folder(root)
    assert source.classes == ["a", "b"]
    assert sorted(str(item.split) for item in source.items) == [
        "test",
        "test",
        "train",
        "train",
        "train",
        "val",
        "val",
    ]
    assert [each.path for each in source.left_out] == ["notes/a.txt"]


def test_loose_pictures_partial_downloads_and_unread_formats_are_told_apart(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/dog": 1, "train/cat": 1, ".": 1, "train": 1, "test/cat": 1, "test/dog": 1})
    for name in ("a.psd", "b.jpg.part", "c.CRDOWNLOAD", "no_suffix"):
        (root / "train/dog" / name).write_bytes(b"x")
    source = folder(root)
    assert len(source.items) == 4
    assert [(each.path, each.kind) for each in sorted(source.left_out)] == [
        ("0002.png", "outside of class folders"),
        ("train/0003.png", "outside of class folders"),
        ("train/dog/a.psd", ".psd picture"),
        ("train/dog/b.jpg.part", "partial download"),
        ("train/dog/c.CRDOWNLOAD", "partial download"),
        ("train/dog/no_suffix", "other file"),
    ]
    assert all(each.reason for each in source.left_out)


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
@pytest.mark.parametrize("layout", [("a", "b"), ("train/a", "train/b")])
def test_a_folder_of_unlabelled_pictures_lies_beside_the_others(
    tmp_path: Path, name: str, layout: tuple[str, str]
) -> None:
    source = folder(tree(tmp_path, {layout[0]: 2, layout[1]: 2, f"{name}/deep": 2, name: 1}))
    assert source.classes == ["a", "b"]
    bare = [item for item in source.items if item.label == NO_LABEL]
    assert [item.path for item in bare] == [
        f"{name}/0006.png",
        f"{name}/deep/0004.png",
        f"{name}/deep/0005.png",
    ]
    assert {item.split for item in bare} == {UNLABELLED}
    assert len(source.items) == 7
    assert not source.left_out


def test_unlabelled_pictures_inside_of_a_split_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/a": 2, "train/b": 2, "train/unlabelled": 2})
    with pytest.raises(InputError, match="Move 'train/unlabelled' to 'unlabelled'"):
        folder(root)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    """DVC hashes what is behind them as nothing."""
    real = tree(tmp_path / "elsewhere", {"c": 2})
    root = tree(tmp_path / "root", {"a": 2, "b": 2})
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "c").symlink_to(real / "c")
    with pytest.raises(InputError) as caught:
        folder(root)
    for part in (f"'a/loop' (to '{root / 'a'}'), 'c' (to '{real / 'c'}')", "Move or copy the real folders"):
        assert part in str(caught.value)


def test_root_itself_and_files_may_be_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "real", {"a": 2, "b": 2})
    picture(90).save(tmp_path / "other.png")
    (root / "a" / "linked.png").symlink_to(tmp_path / "other.png")
    (tmp_path / "link").symlink_to(root)
    source = folder(tmp_path / "link")
    [i] = [i for i, item in enumerate(source.items) if item.path == "a/linked.png"]
    assert source.read(i) == (tmp_path / "other.png").read_bytes()
    assert not source.bad


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": 2, "b": 2})
    os.mkfifo(root / "a/pipe.png")
    os.mkfifo(root / "b/pipe")
    monkeypatch.chdir(root / "b")  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    (root / "b/gone.png").symlink_to("nowhere.png")
    (root / "gone").symlink_to("/nowhere/on/a/disk")  # perhaps a class on a disk that is not there
    (root / "b/round.png").symlink_to("round.png")
    source = folder(root)
    assert [(each.path, each.kind) for each in source.bad] == [
        ("a/pipe.png", "not a file"),
        ("b/gone.png", "dangling link"),
        ("b/pipe", "not a file"),
        ("b/round.png", "unreadable"),
        ("b/socket.jpg", "not a file"),
        ("gone", "dangling link"),
    ]
    assert len(source.items) == 4


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": 2, "b": 2, "b/closed": 2})
    scan = os.scandir

    def scandir(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = folder(root)
    assert list(source.bad) == [LeftOut("b/closed", "unreadable folder", "Permission denied")]
    assert len(source.items) == 4


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tree(tmp_path, {"a": 2, "b": 2}))
    size = (tmp_path / "a/0000.png").stat().st_size
    monkeypatch.setattr(walk, "MAX_BYTES", size - 1)
    with pytest.raises(Undecodable, match=f"{size} bytes are too many") as caught:
        source.read(0)
    assert caught.value.kind == "too large"
    monkeypatch.setattr(walk, "MAX_BYTES", size)
    source.read(0)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no class folders"),
        ({".": 3}, "no class folders"),
        ({"a": 2, "b": 0}, "class folder 'b' holds no images"),
        ({"train/a": 2, "train/b": 0}, "class folder 'train/b' holds no images"),
        ({"train": 2}, "split folder 'train' holds no class folders"),
        (
            {"train/a": 2, "train/b": 2, "c": 1},
            r"split folders \(train\) and class folders \(c\) lie side by side",
        ),
        ({"train/a": 2, "val/a": 2, "valid/a": 1}, "val and valid are both the val split"),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    root = tree(tmp_path / "pictures", counts)
    root.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message) as caught:
        folder(root)
    assert str(caught.value).startswith(f"data.root '{root}': ")
    assert "\n" not in str(caught.value)


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, why in (("nowhere", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(InputError, match=rf"data\.root .*{name}.*{why}"):
            folder(tmp_path / name)


def test_a_class_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2})
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match="not valid UTF-8"):
        folder(tmp_path)


def mnist_like(root: Path, count: int) -> None:
    """Save files in the form in which torchvision expects FashionMNIST."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        images = np.random.default_rng(len(split)).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 0x803, count, 28, 28) + images.tobytes()
        )
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + labels.tobytes())


def torchvision_set(name: str, root: Path) -> Source:
    return sources.find(DataConfig(source=f"torchvision:{name}", root=str(root), size=8))


def test_a_torchvision_set_on_disk_is_read(tmp_path: Path) -> None:
    mnist_like(tmp_path, 20)
    source = torchvision_set("FashionMNIST", tmp_path)
    assert len(source.classes) == 10
    assert source.classes[0] == "T-shirt/top"
    assert listed(source)[0] == ("T-shirt/top", "train", "FashionMNIST/train:0")
    assert listed(source)[21] == ("Trouser", "test", "FashionMNIST/test:1")
    image = source.read(21)
    assert isinstance(image, Image.Image)
    assert image.size == (28, 28)


class Offline:
    """A data set with a `split` argument that is not on disk and cannot be downloaded."""

    base_folder = "offline-1"

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        if split not in ("trainval", "validation"):
            raise ValueError(f"Unknown value '{split}' for argument split. Valid values are ...")
        raise (
            OSError("no route to host\nmore") if download else RuntimeError("Dataset not found or corrupted.")
        )


class Present:
    """A data set with three splits that have names of their own.

    Labels are only in its items, pictures are arrays, and a class has several names.
    """

    classes = (("crane", "bird"), ("crane", "machine"), ("cat",))

    def __init__(self, root: str, split: str = "trainval", transform: None = None) -> None:
        if split not in ("trainval", "validation", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self.offset = len(split)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        if not 0 <= i < 6:
            raise IndexError
        return np.asarray(picture(self.offset * 10 + i)), i % 3


class Boxes(Present):
    def __getitem__(self, i: int) -> Any:
        return picture(i), {"boxes": [1, 2]}


class NoTrain(Present):
    def __init__(self, root: str, split: str = "test") -> None:
        if split != "test":
            raise ValueError("Unknown value for argument split")


class Needy:
    def __init__(self, root: str, annotations: str) -> None: ...


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    for each in (Offline, Present, Boxes, NoTrain, Needy):
        monkeypatch.setattr(datasets, each.__name__, each, raising=False)


@pytest.mark.usefixtures("invented")
def test_a_torchvision_set_with_a_split_argument_is_read(tmp_path: Path) -> None:
    source = torchvision_set("Present", tmp_path)
    assert source.classes == ["crane, bird", "crane, machine", "cat"]
    assert [item.split for item in source.items] == ["train"] * 6 + ["val"] * 6 + ["test"] * 6
    assert listed(source)[8] == ("cat", "val", "Present/val:2")
    image = source.read(8)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), np.asarray(picture(len("validation") * 10 + 2)))


@pytest.mark.usefixtures("invented")
def test_a_failed_download_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        torchvision_set("Offline", tmp_path)
    message = str(caught.value)
    for part in (
        "torchvision:Offline",
        str(tmp_path / "offline-1"),
        "(OSError: no route to host)",
        "another data.source",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.usefixtures("invented")
def test_unsuitable_torchvision_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.source.*'CIFAR1O'.*Did you mean 'CIFAR10'"):
        torchvision_set("CIFAR1O", tmp_path)
    with pytest.raises(InputError, match="Needy"):
        torchvision_set("Needy", tmp_path)
    with pytest.raises(InputError, match="one class for each image"):
        torchvision_set("Boxes", tmp_path)
    with pytest.raises(InputError, match="no split called train or trainval"):
        torchvision_set("NoTrain", tmp_path)
