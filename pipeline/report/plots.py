"""The data of `dvc plots`: training curves and confusions as CSV files."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.predictions import AllPredictions
from pipeline.files import atomic_folder
from pipeline.records.results import Results
from pipeline.report.confusions import confusion, pairs

CLASSES = 30  # of a confusion matrix, at most: names of more cannot be read


def write_plots(results: Results, out: Path, predictions: Mapping[str, AllPredictions]) -> None:
    """Write `curves.csv` (a line for each run, phase, seed and epoch) and `confusion/<run>.csv` (a line for
    each pair of the classes in most mistakes, for the exported seed)."""
    with atomic_folder(out) as folder:
        points = list(_points(results))
        columns = ["run", "phase", "seed", "epoch", "images"]
        columns += sorted({column for point in points for column in point} - set(columns))
        lines = ([point.get(column, "") for column in columns] for point in points)
        _write(folder / "curves.csv", columns, lines)
        (folder / "confusion").mkdir()
        for name, run in results.runs.items():
            shown = pairs(confusion(run, predictions.get(name), CLASSES))
            lines = ([pair.actual, pair.predicted, pair.images, round(pair.share, 4)] for pair in shown)
            _write(folder / "confusion" / f"{name}.csv", ["actual", "predicted", "images", "share"], lines)


def _points(results: Results) -> Iterator[dict[str, Any]]:
    for name, teacher in results.teachers.items():
        for curve in teacher.curves.values():
            yield from _lines({"run": name, "phase": "teacher", "seed": ""}, curve)
    stages = ("pretrain", "distill")
    of_runs = [(name, run.records[stage]) for name, run in results.runs.items() for stage in stages]
    for name, record in (*results.knowledge.items(), *of_runs):
        for key, curve in record.curves.items():
            phase, _, seed = key.rpartition("/seed-")
            yield from _lines({"run": name, "phase": phase, "seed": seed}, curve)


def _lines(common: dict[str, Any], curve: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*curve.values(), strict=True):
        point = dict(zip(curve, values, strict=True))
        yield common | {key: "" if value is None else value for key, value in point.items()}


def _write(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
