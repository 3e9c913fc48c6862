"""The data of `dvc plots`: training curves and confusions as CSV files."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoint import atomic_folder
from pipeline.report.confusions import pairs
from pipeline.report.results import Results


def plots(results: Results, out: Path) -> None:
    """`curves.csv` (a line per run, phase, seed and epoch) and `confusion/<run>.csv` (a line per pair of classes, of the exported seed)."""
    with atomic_folder(out) as folder:
        points = list(_points(results))
        columns = ["run", "phase", "seed", "epoch"]
        columns += sorted({column for point in points for column in point} - set(columns))
        _write(folder / "curves.csv", columns, ([point.get(column, "") for column in columns] for point in points))
        (folder / "confusion").mkdir()
        for name, run in results.runs.items():
            counted = ([pair.actual, pair.predicted, pair.images, round(pair.share, 4)] for pair in pairs(run))
            _write(folder / "confusion" / f"{name}.csv", ["actual", "predicted", "images", "share"], counted)


def _points(results: Results) -> Iterator[dict[str, Any]]:
    for name, teacher in results.teachers.items():
        for curve in teacher.curves.values():
            yield from _unrolled({"run": name, "phase": "teacher", "seed": ""}, curve)
    trained = [(name, run.records[stage]) for name, run in results.runs.items() for stage in ("pretrain", "distill")]
    for name, record in (*results.knowledge.items(), *trained):
        for key, curve in record.curves.items():
            phase, _, seed = key.rpartition("/seed-")
            yield from _unrolled({"run": name, "phase": phase, "seed": seed}, curve)


def _unrolled(common: dict[str, Any], curve: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*curve.values(), strict=True):
        yield common | {key: "" if value is None else value for key, value in zip(curve, values, strict=True)}


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
