import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.folders import fill, picture, tree
from PIL import Image

from pipeline.data import decode
from pipeline.data.image_writer import ImageWriter
from pipeline.data.prepare import prepare
from pipeline.data.protocol import ProtocolConfig, describe_subset, draw_subset, rows_of_classes
from pipeline.data.sources import DataConfig
from pipeline.data.store import SPLITS, Store
from pipeline.settings import InputError

FILES = ["files.csv", "images.npy", "labels.npy", "left_out.csv", "manifest.json", "order.npy", "sheet.png"]


def made(root: Path, out: Path, **settings: Any) -> Store:
    prepare(DataConfig(**{"source": "folder", "root": str(root), "size": 8, **settings}), out)
    return Store.open(out)


def rows(store: Store) -> list[dict[str, str]]:
    with (store.path / "files.csv").open() as file:
        return list(csv.DictReader(file))


def left_out(store: Store) -> list[tuple[str, str]]:
    with (store.path / "left_out.csv").open() as file:
        return [(row["path"], row["kind"]) for row in csv.DictReader(file)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "raw", {"cat": 10, "dog": 20})


def test_every_row_is_the_picture_of_its_file(root: Path, tmp_path: Path) -> None:
    store = made(root, tmp_path / "out")
    assert sorted(path.name for path in store.path.iterdir()) == FILES
    assert store.images.shape == (30, 8, 8, 3)
    listed = rows(store)
    assert sorted(row["path"] for row in listed) == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    )
    for n, row in enumerate(listed):
        assert int(row["row"]) == n
        assert np.array_equal(store.images[:][n], decode.decode(root / row["path"], 8, 3))
        assert store.classes[store.labels[n]] == row["class"] == Path(row["path"]).parts[0]
        assert row["sha256"] == hashlib.sha256((root / row["path"]).read_bytes()).hexdigest()
        assert n in store.indices(row["split"])


def test_the_manifest_counts_images_and_holds_the_settings(root: Path, tmp_path: Path) -> None:
    store = made(root, tmp_path / "out", val=0.1, test=0.3, split_seed=5)
    assert store.manifest["splits"] == {"train": 18, "val": 3, "test": 9}
    assert store.manifest["per_class"] == {
        "train": {"cat": 6, "dog": 12},
        "val": {"cat": 1, "dog": 2},
        "test": {"cat": 3, "dog": 6},
    }
    assert store.manifest["settings"] == {
        "source": "folder",
        "size": 8,
        "channels": 3,
        "square": "crop",
        "val": 0.1,
        "test": 0.3,
        "split_seed": 5,
        "noise": 0.0,
        "table": "",
        "columns": dict.fromkeys(("path", "label", "split", "group", "image")),
        "kept_as": "pixels",
        "on_bad": "fail",
        "max_bad": 0.01,
    }
    assert (store.manifest["unlabelled"], store.manifest["left_out"]) == (0, {})
    assert [store.indices(split).tolist() for split in SPLITS] == [
        list(range(18)),
        list(range(18, 21)),
        list(range(21, 30)),
    ]
    assert (store.size, store.channels, store.classes) == (8, 3, ["cat", "dog"])


def test_a_store_from_before_there_was_a_choice_was_cropped(root: Path, tmp_path: Path) -> None:
    assert made(root, tmp_path / "padded", square="pad").square == "pad"
    store = made(root, tmp_path / "out")
    del store.manifest["settings"]["square"]
    (store.path / "manifest.json").write_text(json.dumps(store.manifest))
    assert Store.open(store.path).square == "crop"


def test_mean_and_deviation_are_those_of_train(root: Path, tmp_path: Path) -> None:
    store = made(root, tmp_path / "out", test=0.4)
    train = store.images[store.indices("train")] / 255
    assert store.mean == pytest.approx(train.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert store.std == pytest.approx(train.std((0, 1, 2)).tolist(), abs=1e-12)


def test_a_constant_channel_has_a_deviation_to_divide_by(tmp_path: Path) -> None:
    for n in range(8):
        folder = tmp_path / "raw" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(picture(n)).copy()
        pixels[:, :, 1] = 7
        Image.fromarray(pixels).save(folder / f"{n}.png")
    store = made(tmp_path / "raw", tmp_path / "out")
    assert store.std[1] == 1 / 255
    assert store.mean[1] == pytest.approx(7 / 255)


def test_the_same_data_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    made(root, tmp_path / "one")
    shutil.copytree(root, tmp_path / "moved")
    made(tmp_path / "moved", tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_every_file_is_read_once_and_every_picture_written_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(root / "cat/0000.png", root / "cat/copy.png")
    opened, written = Counter[str](), Counter[int]()
    read, write = Path.read_bytes, ImageWriter.write

    def counted(path: Path) -> bytes:
        opened.update([path.name] if path.suffix == ".png" else [])
        return read(path)

    def noted(self: ImageWriter, place: int, pixels: np.ndarray) -> np.ndarray:
        written.update(range(place, place + len(pixels)))
        return write(self, place, pixels)

    monkeypatch.setattr(Path, "read_bytes", counted)
    monkeypatch.setattr(ImageWriter, "write", noted)
    store = made(root, tmp_path / "out")
    assert opened == Counter(path.name for path in root.rglob("*.png"))
    assert written == Counter([*range(31), 10])  # the last one fills the gap that the copy leaves
    assert (store.path / "images.npy").stat().st_size == 128 + 30 * 8 * 8 * 3


def test_pictures_lie_in_the_order_in_which_they_were_found(root: Path, tmp_path: Path) -> None:
    store = made(root, tmp_path / "out")
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    order = np.load(store.path / "order.npy")
    assert [found[place] for place in order] == [row["path"] for row in rows(store)]
    pixels = np.load(store.path / "images.npy")
    assert all(np.array_equal(pixels[n], decode.decode(root / path, 8, 3)) for n, path in enumerate(found))


def assignment(store: Store) -> dict[str, str]:
    return {row["sha256"]: row["split"] for row in rows(store)}


def test_other_settings_and_names_move_no_picture(root: Path, tmp_path: Path) -> None:
    before = assignment(made(root, tmp_path / "before"))
    assert assignment(made(root, tmp_path / "other", size=13, channels=1)) == before
    for n, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed-{n}.png"))
    assert assignment(made(root, tmp_path / "renamed")) == before
    assert assignment(made(root, tmp_path / "seeded", split_seed=1)) != before


def test_the_content_hash_changes_with_what_is_learned_from(root: Path, tmp_path: Path) -> None:
    before = made(root, tmp_path / "before").content
    (root / "README").write_text("x")
    (root / "cat/0000.png").rename(root / "cat/zero.png")
    assert made(root, tmp_path / "renamed").content == before
    assert made(root, tmp_path / "seeded", split_seed=1).content != before
    assert made(root, tmp_path / "sized", size=9).content != before
    picture(99).save(root / "cat/zero.png")
    assert made(root, tmp_path / "changed").content != before


def test_copies_are_removed_wherever_they_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"train/cat": 5, "train/dog": 5, "test/cat": 2, "test/dog": 2})
    shutil.copy(root / "test/cat/0010.png", root / "train/cat/copy.png")  # in two splits: leaves train
    shutil.copy(root / "train/dog/0006.png", root / "train/dog/copy.png")
    picture(1).save(root / "train/cat/other-encoding.bmp")  # the pixels of 0001.png
    shutil.copy(root / "train/cat/0000.png", root / "test/dog/contradiction.png")
    store = made(root, tmp_path / "out")
    assert store.manifest["left_out"] == {"duplicate": 3, "contradictory label": 2}
    assert left_out(store) == [
        ("test/dog/contradiction.png", "contradictory label"),
        ("train/cat/0000.png", "contradictory label"),
        ("train/cat/copy.png", "duplicate"),
        *left_out(store)[3:4],  # of two encodings, the one with the smaller hash stays
        ("train/dog/copy.png", "duplicate"),
    ]
    assert left_out(store)[3][0] in ("train/cat/0001.png", "train/cat/other-encoding.bmp")
    assert store.manifest["splits"]["test"] == 4
    pixels = [image.tobytes() for image in store.images[:]]
    assert len(set(pixels)) == len(pixels) == 13
    [remaining] = [row for row in rows(store) if row["path"].endswith(("0010.png", "cat/copy.png"))]
    assert remaining["split"] == "test"


def test_copies_do_not_count_towards_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 5, "dog": 1})
    for n in range(5):
        shutil.copy(root / "dog/0005.png", root / f"dog/copy-{n}.png")
    with pytest.raises(InputError, match="class 'dog' has 1 usable image"):
        made(root, tmp_path / "out")


def test_all_kinds_of_pictures_get_one_form(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 3, "dog": 3})
    odd = picture(50, size=(31, 17))
    odd.convert("L").save(root / "cat/grey.jpg")
    odd.convert("P").save(root / "cat/palette.gif")
    odd.convert("RGBA").save(root / "cat/alpha.webp")
    odd.convert("CMYK").save(root / "cat/cmyk.tif")
    Image.fromarray(np.asarray(odd.convert("L")).astype(np.uint16) * 257).save(root / "cat/deep.png")
    for channels in (1, 3):
        store = made(root, tmp_path / str(channels), channels=channels)
        assert store.images.shape == (11, 8, 8, channels)
        assert len(store.mean) == len(store.std) == channels


def test_broken_pictures_are_named_and_counted(root: Path, tmp_path: Path) -> None:
    whole = BytesIO()
    picture(60, size=(100, 100)).save(whole, "JPEG")
    (root / "dog/cut.jpg").write_bytes(whole.getvalue()[:2000])
    with pytest.raises(
        InputError,
        match=r"data\.root .*: 1 of 31 files are no usable .*truncated: 1\): dog/cut\.jpg \(.*Repair or",
    ):
        made(root, tmp_path / "out")
    for n in range(7):
        (root / f"cat/{n}.jpg").write_bytes(b"")
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(
        InputError, match=r"9 of 39 .*empty: 7.*cat/0\.jpg.*cat/3\.jpg \(.*\) and 4 more"
    ) as caught:
        made(root, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_warning_of_pillow_stops_nothing(root: Path, tmp_path: Path) -> None:
    jpeg = BytesIO()
    picture(70).save(jpeg, "JPEG")
    rubbish = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\x99" * 40
    (root / "cat/exif.jpg").write_bytes(
        b"\xff\xd8\xff\xe1" + (len(rubbish) + 2).to_bytes(2, "big") + rubbish + jpeg.getvalue()[2:]
    )
    assert len(made(root, tmp_path / "out").labels) == 31


def test_one_class_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fill(tmp_path / "raw/cat", 5)
    with pytest.raises(InputError, match=r"data\.root .*only one class, 'cat'"):
        made(tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_digits_are_prepared(tmp_path: Path) -> None:
    manifest = prepare(DataConfig(source="digits", size=8, channels=1), tmp_path)
    store = Store.open(tmp_path)
    assert sum(manifest["splits"].values()) + sum(manifest["left_out"].values()) == 1797
    assert store.images.shape[1:] == (8, 8, 1)
    from sklearn.datasets import load_digits

    originals = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    for row, line in enumerate(rows(store)[:20]):
        assert np.array_equal(
            store.images[:][row][:, :, 0], originals[int(line["path"].removeprefix("digits:"))]
        )


def test_unlabelled_images_are_the_last_rows_and_change_nothing_else(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 10, "dog": 20})
    before = made(root, tmp_path / "before")
    fill(root / "unlabelled", 8, start=25)  # five of them are dogs
    picture(31).save(root / "unlabelled/again.png")
    store = made(root, tmp_path / "out")
    assert store.manifest["splits"] == before.manifest["splits"]
    assert store.manifest["per_class"] == before.manifest["per_class"]
    assert store.manifest["unlabelled"] == 3
    assert store.manifest["left_out"] == {"unlabelled copy": 5, "duplicate": 1}
    assert (store.mean, store.std, store.classes) == (before.mean, before.std, before.classes)
    assert store.indices("unlabelled").tolist() == [30, 31, 32]
    assert before.indices("unlabelled").tolist() == []
    assert store.labels.tolist() == [*before.labels.tolist(), -1, -1, -1]
    assert np.array_equal(store.images[:30], before.images[:])
    assert (store.path / "sheet.png").read_bytes() == (before.path / "sheet.png").read_bytes()
    for row in rows(store)[30:]:
        assert (row["split"], row["class"]) == ("unlabelled", "")
        assert np.array_equal(store.images[:][int(row["row"])], decode.decode(root / row["path"], 8, 3))
    assert store.content != before.content


def test_unlabelled_images_are_in_no_subset_and_no_split(tmp_path: Path) -> None:
    """What students and teachers learn from is the same, whoever reads the labels."""
    root = tree(tmp_path / "raw", {"cat": 10, "dog": 20})
    before = made(root, tmp_path / "before")
    fill(root / "unlabelled", 5, start=90)
    store = made(root, tmp_path / "out")
    assert drawn(store) == drawn(before)


def drawn(store: Store) -> list[Any]:
    protocol = ProtocolConfig(shots=3, label_noise=0.5)
    subset = draw_subset(store.labels, store.indices("train"), protocol, classes=store.classes)
    held_out = [rows_of_classes(store.labels, store.indices(split), (1, 0)) for split in ("val", "test")]
    assert not any((part.labels < 0).any() for part in (subset, *held_out))
    return [describe_subset(subset, store.labels, store.classes), *(part.rows.tolist() for part in held_out)]


def test_a_store_of_unlabelled_rows_with_labels_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 10, "dog": 20, "unlabelled": 3})
    store = made(root, tmp_path / "out")
    labels = np.load(store.path / "labels.npy")
    for row, label in ((-1, 0), (0, -1)):
        changed = labels.copy()
        changed[row] = label
        np.save(store.path / "labels.npy", changed)
        with pytest.raises(InputError, match=APART):
            Store.open(store.path)


def rewritten(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(
        json.dumps({key: value for key, value in {**manifest, **changes}.items() if value is not None})
    )


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zipped(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros(3))


APART = "its images, labels.npy and manifest.json do not belong together"
DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    ("manifest.json is missing", lambda path: (path / "manifest.json").unlink()),
    ("images.npy is missing", lambda path: (path / "images.npy").unlink()),
    ("order.npy is missing", lambda path: (path / "order.npy").unlink()),  # as before schema 3
    ("cannot be read .JSON", lambda path: (path / "manifest.json").write_text("{")),
    ("cannot be read .Unicode", lambda path: (path / "manifest.json").write_bytes(b"\xff\xff")),
    ("cannot be read .TypeError", lambda path: (path / "manifest.json").write_text("[]")),
    ("cannot be read .KeyError: 'mean'", lambda path: rewritten(path, mean=None)),
    ("cannot be read .ValueError", lambda path: shortened(path / "images.npy")),
    ("cannot be read .ValueError: order", lambda path: np.save(path / "order.npy", np.zeros(30, int))),
    ("cannot be read .ValueError: order", lambda path: np.save(path / "order.npy", np.arange(29))),
    ("cannot be read .EOFError", lambda path: (path / "labels.npy").write_bytes(b"")),
    ("cannot be read .AttributeError", lambda path: zipped(path / "images.npy")),
    (APART, lambda path: rewritten(path, splits={"train": 1, "val": 1, "test": 1})),
    (APART, lambda path: rewritten(path, classes=["cat"])),
    (APART, lambda path: rewritten(path, schema=2)),
    (APART, lambda path: rewritten(path, mean=[0.5])),
    (APART, lambda path: rewritten(path, size=9)),
    (APART, lambda path: rewritten(path, unlabelled=1)),
    (APART, lambda path: rewritten(path, content=3)),
    (APART, lambda path: np.save(path / "labels.npy", np.load(path / "labels.npy")[:-1])),
    (APART, lambda path: np.save(path / "labels.npy", np.load(path / "labels.npy").astype(np.int32))),
    (APART, lambda path: np.save(path / "labels.npy", np.load(path / "labels.npy") - 1)),
    (APART, lambda path: np.save(path / "images.npy", np.load(path / "images.npy").astype(np.int8))),
]


def test_a_broken_store_is_refused(root: Path, tmp_path: Path) -> None:
    store = made(root, tmp_path / "store")
    for n, (message, damage) in enumerate(DAMAGES):
        path = tmp_path / str(n)
        shutil.copytree(store.path, path)
        Store.open(path)
        damage(path)
        with pytest.raises(InputError, match=f"data store '{path}'.*{message}.*prepare"):
            Store.open(path)
    with pytest.raises(InputError, match="missing"):
        Store.open(tmp_path / "nowhere")
