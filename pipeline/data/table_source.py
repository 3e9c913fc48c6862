"""The pictures that a table names, or holds, with their labels, splits and groups."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from posixpath import normpath

from pipeline.data.items import SPLIT_NAMES, Item, Source, refuse_unprintable
from pipeline.data.left_out import LeftOut, named
from pipeline.data.parquet_images import ParquetImages, check_column
from pipeline.data.store import NO_LABEL, UNLABELLED
from pipeline.data.table_file import SUFFIXES, Columns, Row, Table, read_table
from pipeline.data.walk import Walked, is_picture, no_picture, read_bytes, stamp, walk_root
from pipeline.settings import InputError


def find_in_table(root_name: str, name: str, columns: Columns) -> Source:
    """The pictures of the table `name` below the folder `root_name`. All its faults are listed at once."""
    root, where = Path(root_name), f"data.table {name!r}"
    walked = walk_root(root, f"data.root {root_name!r}", "Set data.root to the folder that holds the table.")
    if not (root / name).is_file():
        tables = [path for path in walked.files if path.lower().endswith(SUFFIXES)]
        raise InputError(
            f"{where}: there is no such file below data.root. Tables: {named(tables) or '(none)'}."
        )
    table = read_table(root / name, columns, where)
    if table.image:
        check_column(root / name, table.image)
    faults = _Faults(table, root, set(walked.files))
    faults.refuse(where)
    names = sorted({row.label for row in table.rows if row.label})
    refuse_unprintable(names, f"{where}: the label")
    items = _items(table, names, name)
    if table.image:
        of_all = stamp(root / name)
        read = ParquetImages(root / name, table.image)
        return Source(where, names, items, read, walked.bad, stamp=lambda i: of_all)
    used = {item.path for item in items}
    bad = [each for each in walked.bad if each.path not in used]  # the others are found when they are read
    left_out = _left_out(walked, {*used, normpath(name)})
    return Source(
        where,
        names,
        items,
        lambda i: read_bytes(root / items[i].path),
        bad,
        left_out,
        lambda i: stamp(root / items[i].path),
    )


def _items(table: Table, names: list[str], file: str) -> list[Item]:
    labels = {name: label for label, name in enumerate(names)} | {"": NO_LABEL}
    return [
        Item(
            labels[row.label],
            _split(row) if row.label else UNLABELLED,
            f"{file}: {row.place}" if table.image else normpath(row.path),
            row.group,
        )
        for row in table.rows
    ]


def _split(row: Row) -> str | None:
    return SPLIT_NAMES.get(row.split.lower())


def _left_out(walked: Walked, used: set[str]) -> list[LeftOut]:
    return [
        LeftOut(path, "not in the table", "no row names it") if is_picture(path) else no_picture(path)
        for path in walked.files
        if path not in used
    ]


class _Faults:
    """What is wrong with a table: each fault with the rows, or groups, that have it."""

    def __init__(self, table: Table, root: Path, files: set[str]) -> None:
        self.found: dict[str, list[str]] = defaultdict(list)
        self.root, self.files = root, files
        self._add("rows do not have one text or number for each column", table.malformed)
        if not table.image:
            self._check_paths(table.rows)
        self._check_splits(table.rows)
        self._check_groups(table.rows)

    def refuse(self, where: str) -> None:
        """Raise InputError if there are faults."""
        if self.found:
            faults = "; ".join(f"{len(rows):,} {fault}: {named(rows)}" for fault, rows in self.found.items())
            raise InputError(f"{where} has faults: {faults}. Correct the table.")

    def _add(self, fault: str, rows: Iterable[str]) -> None:
        if rows := list(rows):
            self.found[fault] += rows

    def _check_paths(self, rows: list[Row]) -> None:
        seen: dict[str, str] = {}
        for row in rows:
            fault, example = self._fault_of_path(row, seen)
            if fault:
                self._add(fault, [example])
            seen.setdefault(normpath(row.path), row.place)

    def _fault_of_path(self, row: Row, seen: Mapping[str, str]) -> tuple[str, str]:
        """What is wrong with the row's path, or "", and the row as an example of it."""
        path = normpath(row.path)
        example = f"{row.place} ({row.path!r})"
        if not row.path:
            return "rows have no path", row.place
        if row.path.startswith("/") or ".." in row.path.split("/"):
            return "rows have a path that leads out of data.root", example
        if path in seen:
            return "rows name a file again", f"{example[:-1]}, as in {seen[path]})"
        return self._fault_of_file(path), example

    def _fault_of_file(self, path: str) -> str:
        if path in self.files:
            return ""
        if "\0" in path or not os.path.lexists(self.root / path):
            return "rows name a file that is not there"
        if (self.root / path).parent.resolve() != (self.root.resolve() / path).parent:
            return "rows name a file behind a linked folder, which DVC does not watch"
        return ""

    def _check_splits(self, rows: list[Row]) -> None:
        has_splits = any(row.split for row in rows)
        for row in rows:
            if row.split and not _split(row):
                self._add(
                    f"rows have a split other than {', '.join(SPLIT_NAMES)}", [f"{row.place} ({row.split!r})"]
                )
            elif not row.label and _split(row) in ("val", "test"):
                self._add("rows of val or test have no label", [row.place])
            elif row.label and has_splits and not row.split:
                self._add("rows have a label but no split, though other rows have one", [row.place])

    def _check_groups(self, rows: list[Row]) -> None:
        splits: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.label and row.group and (split := _split(row)):
                splits[row.group].add(split)
        self._add(
            "groups are in more than one split",
            (f"{group!r} ({' and '.join(sorted(each))})" for group, each in splits.items() if len(each) > 1),
        )
