"""Tables of pictures: the rows of a CSV, JSONL or Parquet file as text, whatever its columns are called."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.settings import InputError, Settings, unknown

SUFFIXES = (".csv", ".jsonl", ".parquet")
Raw = tuple[int, Mapping[str, Any] | None]  # number and values by column; None: a malformed row


class Columns(Settings):
    """What the columns of the table are called; None: as the setting is.

    `split` and `group` may be missing from the table.
    """

    path: str | None = Field(None, description="the file, relative to data.root")
    label: str | None = Field(None, description="the name of the class; empty: an unlabelled picture")
    split: str | None = Field(None, description="train, val or test")
    group: str | None = Field(None, description="pictures of one group belong to one split")
    image: str | None = Field(None, description="the bytes of the file, in Parquet, in place of a path")

    @property
    def named(self) -> set[str]:
        """Those that params.yaml names."""
        return {what for what, name in self.model_dump().items() if name is not None}

    @property
    def names(self) -> dict[str, str]:
        return {what: name or what for what, name in self.model_dump().items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One picture of a table; "" where nothing is given."""

    place: str  # such as `line 3`
    path: str
    label: str
    split: str
    group: str


@dataclass(frozen=True)
class Table:
    rows: list[Row]
    malformed: list[str]  # places
    image: str | None  # the column that holds the images; None: they are files


def read_table(file: Path, columns: Columns, where: str) -> Table:
    """All rows. `where` names the table in messages."""
    try:
        is_parquet = file.suffix.lower() == ".parquet"
        chosen = _chosen(columns, _names(file), is_parquet=is_parquet)
        table = Table([], [], chosen.pop("image", None))
        unit = "row" if is_parquet else "line"
        for number, values in _rows(file, list(chosen.values())):
            row = None if values is None else _row(f"{unit} {number}", values, chosen)
            if row is None:
                table.malformed.append(f"{unit} {number}")
            else:
                table.rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where} is no table of UTF-8 text ({error}). Save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} cannot be read ({error}). Write it again.") from error
    return table


def _chosen(columns: Columns, names: list[str], *, is_parquet: bool) -> dict[str, str]:
    """The columns that are read, by what they hold. One that is named in params.yaml must be there."""
    named, given = columns.named, columns.names
    if "image" in named and not is_parquet:
        raise InputError("data.columns.image: only a Parquet file can hold images. Name a column of paths.")
    by_bytes = is_parquet and given["path"] not in names and given["image"] in names
    picture = "image" if by_bytes or "image" in named else "path"
    for what in sorted({"label", picture, *named}):
        if given[what] not in names:
            raise unknown(f"data.columns.{what}", given[what], names)
    wanted = ("label", "split", "group", picture)
    return {what: name for what, name in given.items() if what in wanted and name in names}


def _row(place: str, values: Mapping[str, Any], chosen: Mapping[str, str]) -> Row | None:
    try:
        texts = {what: _text(values.get(name)) for what, name in chosen.items()}
    except ValueError:
        return None
    return Row(place, *(texts.get(what, "") for what in ("path", "label", "split", "group")))


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if (
        isinstance(value, float) and value.is_integer()
    ):  # whole numbers beside empty cells, as pandas has them
        value = int(value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError
    return str(value).strip()


def _names(file: Path) -> list[str]:
    """The names of the columns."""
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet  # slow to import; only these tables need it

        return list(parquet.read_schema(file).names)
    if file.suffix.lower() == ".jsonl":
        return list(dict.fromkeys(name for _, values in _json_lines(file) for name in values or ()))
    with file.open(encoding="utf-8-sig", newline="") as stream:
        names = [name.strip() for name in next(csv.reader(stream), [])]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"data.table: {file.name} has two columns {twice[0]!r}. Rename one of them.")
    return names


def _rows(file: Path, columns: list[str]) -> Iterator[Raw]:
    if file.suffix.lower() == ".parquet":
        return _parquet_rows(file, columns)
    return _json_lines(file) if file.suffix.lower() == ".jsonl" else _csv_lines(file)


def _csv_lines(file: Path) -> Iterator[Raw]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, skipinitialspace=True)
        names = [name.strip() for name in next(lines, [])]
        for values in lines:
            if values:
                whole = len(values) == len(names)
                yield lines.line_num, dict(zip(names, values, strict=True)) if whole else None


def _json_lines(file: Path) -> Iterator[Raw]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    values = json.loads(line)
                except json.JSONDecodeError:
                    values = None
                yield number, values if isinstance(values, dict) else None


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[Raw]:
    from pyarrow import parquet

    batches = parquet.ParquetFile(file).iter_batches(columns=columns)
    yield from enumerate((values for batch in batches for values in batch.to_pylist()), 1)
