"""A `prepare` that was stopped goes on where it was, and ends with the same bytes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from data.folders import picture, tree

from pipeline.data import decoding
from pipeline.data.image_writer import ImageWriter
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.settings import InputError

COUNT = 24


class Stop(BaseException):
    """As a kill: nothing is put in order."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 4 * 8 * 8 * 3)  # four pictures in a chunk
    return tree(tmp_path / "raw", {"cat": COUNT // 2, "dog": COUNT // 2})


def config(root: Path, **settings: Any) -> DataConfig:
    return DataConfig(**{"source": "folder", "root": str(root), "size": 8} | settings)


def stopped(root: Path, work: Path, *, after: int = 12, **settings: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        prepare(config(root, **settings), work.parent / "stopped", on_decoded=stop, work=work)
    shutil.rmtree(work.parent / "stopped")


class Counted:
    """How many pictures are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.plain = 0, decoding._decode_one
        monkeypatch.setattr(decoding, "_decode_one", self)

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.plain(*args)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def remaining(counted: Counted, root: Path, work: Path, **settings: Any) -> int:
    """Pictures that the next call decodes. What it makes must be what a call from the start makes."""
    counted.count = 0
    prepare(config(root, **settings), work.parent / "found", work=work)
    found = counted.count
    assert not work.exists()
    prepare(config(root, **settings), work.parent / "wanted")
    files = sorted(path.name for path in (work.parent / "wanted").iterdir())
    assert files == sorted(path.name for path in (work.parent / "found").iterdir())
    for name in files:
        one, other = ((work.parent / place / name).read_bytes() for place in ("found", "wanted"))
        assert one == other, name
    for place in ("found", "wanted"):
        shutil.rmtree(work.parent / place)
    return found


def test_it_goes_on_where_it_was(root: Path, tmp_path: Path, counted: Counted) -> None:
    stopped(root, tmp_path / "work")
    assert remaining(counted, root, tmp_path / "work") == COUNT - 12
    assert remaining(counted, root, tmp_path / "work") == COUNT


def test_twice_stopped(root: Path, tmp_path: Path, counted: Counted) -> None:
    stopped(root, tmp_path / "work", after=8)
    stopped(root, tmp_path / "work", after=16)
    assert remaining(counted, root, tmp_path / "work") == COUNT - 16


def test_changed_files_are_decoded_again(root: Path, tmp_path: Path, counted: Counted) -> None:
    stopped(root, tmp_path / "work")
    file = root / "cat/0001.png"
    size = file.stat().st_size
    picture(77).save(file)
    file.write_bytes(file.read_bytes()[:size].ljust(size, b"\0"))
    os.utime(file, ns=(0, 12345))
    assert remaining(counted, root, tmp_path / "work") == COUNT - 12 + 4


def test_a_new_file_moves_those_after_it(root: Path, tmp_path: Path, counted: Counted) -> None:
    stopped(root, tmp_path / "work")
    picture(78).save(root / "cat/00045.png")  # the sixth one
    assert remaining(counted, root, tmp_path / "work") == COUNT + 1 - 4


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ({}, {"size": 9}, False),
        ({}, {"channels": 1}, False),
        ({}, {"square": "pad"}, False),
        ({}, {"noise": 3.0}, False),
        ({"noise": 3.0}, {"noise": 3.0, "split_seed": 1}, False),
        ({}, {"split_seed": 1, "val": 0.2, "on_bad": "skip"}, True),
    ],
)
def test_other_settings_start_again_if_pixels_depend_on_them(
    before: dict[str, Any], after: dict[str, Any], kept: bool, root: Path, tmp_path: Path, counted: Counted
) -> None:
    stopped(root, tmp_path / "work", **before)
    assert remaining(counted, root, tmp_path / "work", **after) == (COUNT - 12 if kept else COUNT)


def test_other_code_starts_again(
    root: Path, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, changed in (("_code", lambda module: b"new"), ("PIL", type("", (), {"__version__": "0"}))):
        stopped(root, tmp_path / "work")
        monkeypatch.setattr(decoding, name, changed)
        assert remaining(counted, root, tmp_path / "work") == COUNT


@pytest.mark.parametrize("rest", [b"[12, ", b"\0" * 50, b"\xff"])
def test_a_line_that_was_cut_is_left_out(rest: bytes, root: Path, tmp_path: Path, counted: Counted) -> None:
    stopped(root, tmp_path / "work")
    with (tmp_path / "work/decoded.jsonl").open("ab") as file:
        file.write(rest)
    stopped(root, tmp_path / "work", after=16)
    assert remaining(counted, root, tmp_path / "work") == COUNT - 16


def test_a_list_that_makes_no_sense_is_dropped(root: Path, tmp_path: Path, counted: Counted) -> None:
    for rest in ("[1, 2]", "{}", "null", "x"):
        stopped(root, tmp_path / "work")
        with (tmp_path / "work/decoded.jsonl").open("a") as file:
            file.write(rest + "\n")
        assert remaining(counted, root, tmp_path / "work") == COUNT


def test_pixels_that_were_lost_are_made_again(root: Path, tmp_path: Path, counted: Counted) -> None:
    """As after a power cut: the list was written, and the pictures were not."""
    stopped(root, tmp_path / "work")
    with ImageWriter(tmp_path / "work", 8, 3) as writer:
        os.truncate(tmp_path / "work/images.npy", 128 + 10 * writer.stride)
        writer.write(0, writer.read(range(1, 2)))
    assert remaining(counted, root, tmp_path / "work") == COUNT - 12 + 8


def test_a_bad_file_costs_little_once_it_is_repaired(root: Path, tmp_path: Path, counted: Counted) -> None:
    good = (root / "dog/0013.png").read_bytes()
    for content in (b"", good[:30]):
        (root / "dog/0013.png").write_bytes(content)
        with pytest.raises(InputError, match=r"1 of 24 files"):
            prepare(config(root), tmp_path / "out", work=tmp_path / "work")
    (root / "dog/0013.png").write_bytes(good)
    assert remaining(counted, root, tmp_path / "work") == 4


def test_a_source_whose_files_are_not_known_starts_again(tmp_path: Path, counted: Counted) -> None:
    cfg = DataConfig(source="digits", size=8, channels=1)
    with pytest.raises(Stop):
        prepare(cfg, tmp_path / "out", on_decoded=_raise, work=tmp_path / "work")
    counted.count = 0
    prepare(cfg, tmp_path / "out", work=tmp_path / "work")
    assert counted.count == 1797


def _raise(done: int, total: int) -> None:
    if done > 1000:
        raise Stop


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_goes_on_too(form: str, tmp_path: Path, root: Path, counted: Counted) -> None:
    files = sorted(root.rglob("*.png"))
    rows = [{"path": str(file.relative_to(root)), "label": file.parent.name} for file in files]
    if form == "csv":
        (root / "t.csv").write_text("path,label\n" + "".join(f"{r['path']},{r['label']}\n" for r in rows))
    else:
        import pyarrow
        from pyarrow import parquet

        held = [{"label": r["label"], "image": (root / r["path"]).read_bytes()} for r in rows]
        shutil.rmtree(root)
        root.mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(held), root / "t.parquet")
    settings: dict[str, Any] = {"source": "manifest", "table": f"t.{form}"}
    stopped(root, tmp_path / "work", **settings)
    assert remaining(counted, root, tmp_path / "work", **settings) == COUNT - 12
    stopped(root, tmp_path / "work", **settings)
    table = root / f"t.{form}"
    os.utime(table, ns=(0, 999))
    assert remaining(counted, root, tmp_path / "work", **settings) == (COUNT - 12 if form == "csv" else COUNT)


def test_the_list_names_what_it_depends_on(root: Path, tmp_path: Path) -> None:
    stopped(root, tmp_path / "work")
    first = json.loads((tmp_path / "work/decoded.jsonl").read_text().splitlines()[0])
    assert first["size"] == 8
    assert {"code", "pillow", "root"} <= set(first)
