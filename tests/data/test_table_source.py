import csv
import json
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.folders import picture, tree

from pipeline.data import sources
from pipeline.data.decode import Undecodable
from pipeline.data.items import Source
from pipeline.data.parquet_images import ParquetImages
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import NO_LABEL, UNLABELLED, Store
from pipeline.settings import InputError

Rows = list[dict[str, Any]]


def config(root: Path, table: str, **settings: Any) -> DataConfig:
    return DataConfig(**{"source": "manifest", "root": str(root), "table": table, "size": 8} | settings)


def found(root: Path, table: str = "table.csv", **columns: str) -> Source:
    return sources.find(config(root, table, **({"columns": columns} if columns else {})))


def listed(source: Source) -> list[tuple[str, str, str | None, str]]:
    names = {NO_LABEL: "", **dict(enumerate(source.classes))}
    return [(item.path, names[item.label], item.split, item.group) for item in source.items]


def write(file: Path, rows: Rows) -> None:
    """The same rows in any of the formats."""
    if file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "data", {"shots": 8})


def rows(count: int = 8, **columns: Any) -> Rows:
    """A row for each picture; a column is a function of the number, or one value."""
    columns = {"label": lambda n: "cat" if n % 2 else "dog"} | columns
    return [
        {"path": f"shots/{n:04d}.png"}
        | {name: value(n) if callable(value) else value for name, value in columns.items()}
        for n in range(count)
    ]


@pytest.mark.parametrize("suffix", ["csv", "CSV", "jsonl", "parquet"])
def test_every_format_says_the_same(root: Path, suffix: str) -> None:
    group = ["a", "b", "", "c"]
    given = rows(
        split=lambda n: "train" if n < 6 else "" if n == 7 else "Validation",
        label=lambda n: "" if n == 7 else "cat" if n % 2 else "dog",
        group=lambda n: group[n // 2],
    )
    write(root / f"table.{suffix.lower()}", given)
    (root / f"table.{suffix.lower()}").rename(root / f"table.{suffix}")
    source = found(root, f"table.{suffix}")
    assert source.classes == ["cat", "dog"]
    assert listed(source) == [
        *((f"shots/{n:04d}.png", "cat" if n % 2 else "dog", "train", group[n // 2]) for n in range(6)),
        ("shots/0006.png", "dog", "val", "c"),
        ("shots/0007.png", "", UNLABELLED, "c"),
    ]
    assert source.read(3) == (root / "shots/0003.png").read_bytes()
    assert not source.left_out


def test_columns_may_have_other_names(root: Path) -> None:
    write(
        root / "table.csv",
        [{"file": row["path"], "y": row["label"], "who": "x", "split": "p"} for row in rows()],
    )
    with pytest.raises(InputError, match=r"data\.columns\.label: there is no 'label'.* file, split, who, y"):
        found(root)
    with pytest.raises(InputError, match=r"data\.columns\.group: there is no 'Who'\. Did you mean 'who'"):
        found(root, path="file", label="y", split="who", group="Who")
    write(root / "table.csv", [{"file": row["path"], "y": row["label"], "who": "x"} for row in rows()])
    assert listed(found(root, path="file", label="y", group="who"))[1] == ("shots/0001.png", "cat", None, "x")
    assert {item.group for item in found(root, path="file", label="y").items} == {""}


def test_numbers_are_names_of_classes(root: Path) -> None:
    given = rows(label=lambda n: None if n == 5 else float(n % 2))  # as pandas writes numbers beside gaps
    for file in ("table.jsonl", "table.parquet"):
        write(root / file, given)
        assert found(root, file).classes == ["0", "1"]
        assert [item.label for item in found(root, file).items] == [0, 1, 0, 1, 0, NO_LABEL, 0, 1]


def test_a_byte_order_mark_and_spaces_do_no_harm(root: Path) -> None:
    lines = "".join(f'"{row["path"]}" , {row["label"]} \n\n' for row in rows()).replace('" ,', '",')
    (root / "table.csv").write_bytes(b"\xef\xbb\xbf" + f"path, label\n{lines}".encode())
    assert found(root).classes == ["cat", "dog"]


def test_all_faults_are_told_at_once(root: Path, tmp_path: Path) -> None:
    picture(50).save(tmp_path / "outside.png")
    (tmp_path / "elsewhere").mkdir()
    picture(51).save(tmp_path / "elsewhere/a.png")
    (root / ".hidden").symlink_to(tmp_path / "elsewhere")
    faults = [
        ("gone.png", "cat", "train", ""),
        ("", "cat", "train", ""),
        ("shots/0000.png", "cat", "train", ""),
        ("shots//0001.png", "cat", "train", ""),
        ("../outside.png", "cat", "train", ""),
        (str(tmp_path / "outside.png"), "cat", "train", ""),
        (".hidden/a.png", "cat", "train", ""),
    ]
    given = [(row["path"], row["label"], "train", "") for row in rows(8)]
    given[2] = ("shots/0002.png", "dog", "dev", "")
    given[3] = ("shots/0003.png", "dog", "", "")
    given[4] = ("shots/0004.png", "", "test", "")
    given[5], given[6] = ("shots/0005.png", "dog", "train", "p1"), ("shots/0006.png", "dog", "test", "p1")
    lines = [f"{','.join(row)}\n" for row in (("path", "label", "split", "group"), *given, *faults)]
    (root / "table.csv").write_text("".join([*lines, "too,few\n"]))
    with pytest.raises(InputError) as caught:
        found(root)
    message = str(caught.value)
    assert message.startswith("data.table 'table.csv' has faults: ")
    for part in (
        "1 rows name a file that is not there: line 10 ('gone.png')",
        "1 rows have no path: line 11;",
        "2 rows name a file again: line 12 ('shots/0000.png', as in line 2), line 13 ('shots//0001.png', ",
        "2 rows have a path that leads out of data.root: line 14 ('../outside.png'), line 15 (",
        "1 rows name a file behind a linked folder, which DVC does not watch: line 16 ('.hidden/a.png')",
        "1 rows do not have one text or number for each column: line 17;",
        "1 rows have a split other than train, val, valid, validation, test: line 4 ('dev')",
        "1 rows have a label but no split, though other rows have one: line 5;",
        "1 rows of val or test have no label: line 6;",
        "1 groups are in more than one split: 'p1' (test and train)",
    ):
        assert part in message, part
    assert "\n" not in message


def test_of_many_faults_the_first_are_named(root: Path) -> None:
    write(root / "table.csv", rows(40))
    with pytest.raises(
        InputError, match=r"32 rows name a file .*line 10 \('shots/0008\.png'\).*14.*\) and 27 more\."
    ):
        found(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"data\.columns\.label: there is no 'label'"),
        (b"path,label,path\n", "two columns 'path'"),
        (b"path,label\n\xff\xfe,a\n", "no table of UTF-8 text"),
        (b"path,label\n", "there is no class"),
        (b"image,label\nshots/0000.png,a\n", r"data\.columns\.path: there is no 'path'.* image, label"),
    ],
)
def test_a_table_that_is_none_is_refused(root: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (root / "table.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare(config(root, "table.csv"), tmp_path / "out")


def test_damaged_tables_are_refused(root: Path) -> None:
    (root / "table.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"data\.table 'table\.parquet' cannot be read \(.*Write it again"):
        found(root, "table.parquet")
    (root / "table.jsonl").write_text(
        '{"path": "a", "label": "b"}\n{"path": \n[1]\n{"path": "a", "label": [1]}\n'
    )
    with pytest.raises(InputError, match=r"3 rows do not have one text .*line 2, line 3, line 4"):
        found(root, "table.jsonl")
    with pytest.raises(
        InputError, match=r"no such file below data\.root\. Tables: table\.jsonl, table\.parquet"
    ):
        found(root, "other.csv")
    (root / "table.jsonl").write_text('{"path": "shots/0000.png", "label": "\\ud800"}\n')
    with pytest.raises(InputError, match=r"the label .* is not valid UTF-8"):
        found(root, "table.jsonl")
    (root / "table.jsonl").write_text('{"path": "shots/\\u0000.png", "label": "a"}\n')
    with pytest.raises(InputError, match="1 rows name a file that is not there"):
        found(root, "table.jsonl")


def test_files_that_no_row_names_are_told(root: Path) -> None:
    write(root / "table.csv", rows(6))
    (root / "shots/a.jpg.part").write_text("x")
    (root / "gone.png").symlink_to("nowhere")
    (root / "shots/0000.png").unlink()
    (root / "shots/0000.png").symlink_to("nowhere")
    source = found(root)
    assert [(each.path, each.kind) for each in source.left_out] == [
        ("shots/0006.png", "not in the table"),
        ("shots/0007.png", "not in the table"),
        ("shots/a.jpg.part", "partial download"),
    ]
    assert [each.path for each in source.bad] == ["gone.png"]  # the other one is told when it is read
    with pytest.raises(Undecodable, match="a link to nothing"):
        source.read(0)


def image_rows(count: int, *, nested: bool = False) -> Rows:
    given = []
    for n in range(count):
        file = BytesIO()
        picture(n).save(file, "PNG")
        image: Any = {"bytes": file.getvalue(), "path": None} if nested else file.getvalue()
        given.append({"image": image, "label": n % 2})
    return given


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_may_be_inside_of_a_parquet_file(root: Path, tmp_path: Path, nested: bool) -> None:
    given = image_rows(40, nested=nested)
    write(root / "table.parquet", given)
    source = found(root, "table.parquet")
    for i in (3, 39, 0, 0, 17):  # in any order, and again
        image = given[i]["image"]
        assert source.read(i) == (image["bytes"] if nested else image)
    assert listed(source)[1] == ("table.parquet: row 2", "1", None, "")
    prepare(config(root, "table.parquet"), tmp_path / "out")
    store = Store.open(tmp_path / "out")
    assert store.manifest["splits"] == {"train": 28, "val": 4, "test": 8}
    with (tmp_path / "out/files.csv").open() as file:
        for n, row in enumerate(csv.DictReader(file)):
            expected = given[int(row["path"].rpartition(" ")[2]) - 1]
            assert store.labels[n] == expected["label"]


def test_rows_without_bytes_are_bad_files(root: Path) -> None:
    write(root / "table.parquet", [*image_rows(4), {"image": None, "label": 0}])
    with pytest.raises(Undecodable) as caught:
        found(root, "table.parquet").read(4)
    assert caught.value.kind == "empty"


def test_a_column_of_images_must_hold_bytes(root: Path) -> None:
    write(root / "table.parquet", [{"image": 3, "label": "a"}])
    with pytest.raises(InputError, match=r"data\.columns\.image: column 'image' holds int64"):
        found(root, "table.parquet")
    write(root / "table.csv", [{"image": "a", "label": "a"}])
    with pytest.raises(InputError, match=r"data\.columns\.image: only a Parquet file"):
        found(root, image="image")


def test_a_column_of_images_is_read_only_if_there_are_no_paths(root: Path) -> None:
    both = [row | {"path": f"shots/{n:04d}.png"} for n, row in enumerate(image_rows(8))]
    write(root / "table.parquet", both)
    assert listed(found(root, "table.parquet"))[0][0] == "shots/0000.png"
    assert listed(found(root, "table.parquet", image="image"))[0][0] == "table.parquet: row 1"


def test_groups_of_a_table_stay_whole_to_the_store(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", {"shots": 90})
    write(root / "table.csv", rows(90, group=lambda n: f"patient {n // 3}", label=lambda n: "ab"[n // 45]))
    prepare(config(root, "table.csv", val=0.2), tmp_path / "out")
    store = Store.open(tmp_path / "out")
    splits: dict[str, Counter[str]] = {}
    with (tmp_path / "out/files.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["group"] == f"patient {int(row['path'][6:10]) // 3}"
            splits.setdefault(row["group"], Counter())[row["split"]] += 1
    assert all(list(found.values()) == [3] for found in splits.values())
    assert store.manifest["per_class"] == {split: {"a": n, "b": n} for split, n in SIZES.items()}


SIZES = {"train": 27, "val": 9, "test": 9}


def test_unlabelled_pictures_of_a_held_out_group_are_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", {"shots": 40})
    given = rows(
        40,
        group=lambda n: f"p{n // 4}",
        split=lambda n: (
            "train" if n == 39 else "" if n % 4 == 3 else ("train", "train", "train", "val", "test")[n // 8]
        ),
        label=lambda n: "" if n % 4 == 3 else "ab"[n % 2],
    )
    write(root / "table.csv", given)
    prepare(config(root, "table.csv"), tmp_path / "out")
    store = Store.open(tmp_path / "out")
    assert store.manifest["unlabelled"] == 6
    assert store.manifest["left_out"] == {"group held out": 4}
    text = (tmp_path / "out/left_out.csv").read_text()
    assert [line.partition(",")[0] for line in text.splitlines()[1:]] == [
        f"shots/{n:04d}.png" for n in (27, 31, 35, 39)
    ]


def test_a_class_that_groups_do_not_allow_to_cut_is_refused_before_anything_is_read(root: Path) -> None:
    write(root / "table.csv", rows(group=lambda n: f"p{n % 4}"))
    (root / "shots/0000.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"data\.table 'table\.csv': class 'cat' has usable .* of 2 group"):
        prepare(config(root, "table.csv"), root / "out")


def test_a_long_table_is_read_in_seconds(tmp_path: Path) -> None:
    """100,000 rows; that the files are not there is told as well."""
    lines = [f"shots/{n}.jpg,class {n % 1000},,patient {n // 7}\n" for n in range(100_000)]
    (tmp_path / "table.csv").write_text("".join(["path,label,split,group\n", *lines]))
    started = time.process_time()
    with pytest.raises(InputError, match="100,000 rows name a file"):
        found(tmp_path)
    assert time.process_time() - started < 20  # about 2 on an idle machine


def test_a_large_parquet_file_is_read_in_little_memory(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    random = np.random.default_rng(0)
    images = pyarrow.array([random.bytes(10_000) for _ in range(10_000)])
    table = pyarrow.table({"image": images, "label": ["ab"[n % 2] for n in range(10_000)]})
    parquet.write_table(table, tmp_path / "table.parquet")  # one group of 100 MB
    last = images[-1].as_py()
    del images, table
    pool, most = pyarrow.default_memory_pool(), 0
    before, source = pool.bytes_allocated(), found(tmp_path, "table.parquet")
    for i in range(10_000):
        image = source.read(i)
        most = max(most, pool.bytes_allocated() - before)
    assert image == last
    assert most < 40e6
    assert isinstance(source.read, ParquetImages)
    assert not source.read.waiting


def test_rows_that_nobody_asks_for_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an earlier `prepare` has decoded the first ones."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"image": b"picture %d" % n, "label": "ab"[n % 2]} for n in range(60)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    monkeypatch.setattr("pipeline.data.parquet_images.WAITING", 8)
    read = found(tmp_path, "table.parquet").read
    assert isinstance(read, ParquetImages)
    assert read(40) == b"picture 40"
    assert len(read.waiting) <= 8
    stream = read.stream
    assert [read(i) for i in (35, 34, 43, 41)] == [b"picture %d" % i for i in (35, 34, 43, 41)]
    assert read.stream is stream  # the file was not read again from its start
    assert [read(i) for i in (3, 59, 2)] == [b"picture 3", b"picture 59", b"picture 2"]
