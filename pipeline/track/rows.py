"""What a row says, from records alone: names, numbers, curves and hashes, in a form that MLflow accepts."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.records.record import Curves, Record
from pipeline.records.results import Results, RunResults
from pipeline.report.run_gains import gains_over_baseline
from pipeline.report.words import BY_CLASS

MEANINGS = {
    "by_val": "accuracy on validation, or what train.select names (the best run is chosen by it)",
    "top1": "accuracy on the test images",
    "balanced_accuracy": "balanced accuracy (mean recall of the classes)",
    "macro_f1": "macro-F1 (mean F1 of the classes)",
    "spread": "standard deviation of the accuracy over seeds",
    "gain": "gain over the baseline",
    "latency_ms": "milliseconds an image, ONNX on the CPU",
    "size_mb": "MB",
    "params_m": "million parameters",
}
Point = tuple[str, float, int, int]  # key, value, milliseconds since 1970, step


@dataclass(frozen=True)
class Row:
    """What becomes one MLflow run: a student or a teacher."""

    kind: str  # "run" or "teacher"
    name: str
    shared: list[Record]  # of stages that other rows need too: prepare, a student's teacher and its knowledge
    own: list[Record]  # of the stages that worked for this row only, in the order of the graph
    headline: dict[str, float]  # the numbers to compare rows by
    compared_with: list[str]  # ids of further records that the headline depends on

    @property
    def records(self) -> list[Record]:
        return [*self.shared, *self.own]

    @property
    def key(self) -> str:
        """Equal for rows from the same executions of stages, whenever and wherever they are logged."""
        ids = [self.kind, self.name, *(record.id for record in self.records), *self.compared_with]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]

    @property
    def end(self) -> int:
        return milliseconds(self.own[-1].finished)

    @property
    def start(self) -> int:
        """Such that the duration is the time of its own stages only."""
        return self.end - round(1000 * sum(record.seconds for record in self.own))


def build_rows(results: Results) -> list[Row]:
    """The teachers' rows, then the runs'."""
    gains = gains_over_baseline(results)
    of_teachers = [_teacher_row(results, name) for name in results.teachers]
    of_runs = [
        _run_row(results, run, gains[name].mean if name in gains else None)
        for name, run in results.runs.items()
    ]
    return of_teachers + of_runs


def _run_row(results: Results, run: RunResults, gain: float | None) -> Row:
    scores = run.records["evaluate"].metrics
    headline = {"by_val": results.value(run), "top1": scores["accuracy"]}
    headline |= (
        ({"spread": scores["spread"]} if scores["n"] > 1 else {})
        | _by_class(scores)
        | ({} if gain is None else {"gain": gain})
        | _costs(run.records["benchmark"].metrics)
    )
    baseline = [results.runs[run.baseline].records["evaluate"].id] if run.baseline else []
    knowledge = [results.knowledge[run.knowledge]] if run.knowledge else []
    shared = [results.prepare, results.teachers[run.teacher], *knowledge]
    return Row("run", run.name, shared, list(run.records.values()), headline, baseline)


def _teacher_row(results: Results, name: str) -> Row:
    """Without accuracy on validation in the headline: the page sorts by that, and shows teachers last."""
    headline: dict[str, float] = {}
    run = results.run_of_teacher(name)
    if run is not None:
        scores = run.records["evaluate"].details["teacher"]
        headline |= {"top1": scores["accuracy"]} | _by_class(scores)
        headline |= _costs(run.records["benchmark"].details["teacher"])
        # its latency is PyTorch's, which cannot be compared with that of the students' ONNX files
        headline.pop("latency_ms", None)
    return Row("teacher", name, [results.prepare], [results.teachers[name]], headline, [])


def _by_class(scores: Mapping[str, Any]) -> dict[str, float]:
    """The means over classes; records from before there were any have none."""
    return {key: scores[key] for key in BY_CLASS if key in scores}


def _costs(speed: Mapping[str, float]) -> dict[str, float]:
    names = {"latency_ms": "latency_ms", "size_mb": "size_mb", "params_m": "parameters_m"}
    return {ours: speed[theirs] for ours, theirs in names.items() if theirs in speed}


def params(row: Row) -> dict[str, str]:
    """The settings that the stages read. Of two values with one name, the later is named after its stage."""
    found: dict[str, str] = {}
    for record in row.records:
        for key, value in flatten(record.params):
            if found.setdefault(mlflow_name(key), value) != value:
                found[mlflow_name(f"{record.stage}.{key}")] = value
    return found


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def points(row: Row) -> Iterator[Point]:
    """The headline, every metric of every stage, and the curves, except those that the teacher's row has.

    MLflow's pages keep this order, and compare runs by the metric that comes first.
    """
    for key, value in row.headline.items():
        # as many digits as `dvc metrics show` prints: the column of the list is narrow
        yield f"best/{key}", round(value, 5), row.end, 0
    for record in reversed(row.records):
        for key, value in record.metrics.items():
            yield mlflow_name(f"{record.stage}/{key}"), value, milliseconds(record.finished), 0
    for record in row.records:
        if record.stage == "teacher" and row.kind == "run":
            continue
        seconds = 0.0  # of the curves before
        for key, curve in record.curves.items():
            yield from curve_points(key, curve, start=milliseconds(record.started) + 1000 * seconds)
            seconds += curve["seconds"][-1]


def curve_points(key: str, curve: Curves, *, start: float, first: int = 0) -> Iterator[Point]:
    """The points of a curve that began at the millisecond `start`, from the point `first` on."""
    # a teacher's curve has the name of its stage: its last value must not be taken for the final number
    prefix = key if "/" in key else f"{key}/epochs"
    for i in range(first, len(curve["epoch"])):
        moment, step = round(start + 1000 * curve["seconds"][i]), math.ceil(curve["epoch"][i])
        for column in curve.keys() - {"epoch", "images"}:
            yield mlflow_name(f"{prefix}/{column}"), curve[column][i], moment, step


def tags(row: Row) -> dict[str, str]:
    """Which executions of stages, which data, networks and code, and what kind of machine."""
    return {
        "kind": row.kind,
        "pipeline_key": row.key,
        **{f"hash.{key}": value for key, value in hashes(row).items()},
        **{f"stage.{record.stage}": record.id for record in row.records},
        **{f"environment.{mlflow_name(key)}": str(value) for key, value in row.own[0].environment.items()},
    }


def hashes(row: Row) -> dict[str, str]:
    """Hashes of the data, of the code that trained the student, and of what was made."""
    records = {record.stage: record for record in row.records}
    found = {
        "data": row.shared[0].details["manifest"]["content"],
        "teacher": _digest(records["teacher"].outputs),
    }
    if row.kind == "run":
        found["student"] = _digest(records["distill"].outputs)
        found["bundle"] = _digest(records["export"].outputs)
        found["code"] = records["distill"].inputs["code"]
    return found


def _digest(outputs: Mapping[str, str]) -> str:
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def description(row: Row, makers: Mapping[str, str]) -> str:
    """The text above a row, in Markdown. `makers` links each cached stage to the row that it was made for."""
    numbers = " · ".join(f"{MEANINGS[key]} **{value:.4g}**" for key, value in row.headline.items())
    stages = "\n".join(
        f"| {r.stage} {r.name} | {f'cached, made by {makers[r.stage]}' if r.stage in makers else 'this row'} "
        f"| {r.finished[:19].replace('T', ' ')} | {r.seconds:.1f} | `{r.id[:8]}` |"
        for r in row.records
    )
    return (
        f"{'The student of run' if row.kind == 'run' else 'The teacher'} **{row.name}**: {numbers}\n\n"
        f"| stage | made for | finished (UTC) | seconds | record |\n|---|---|---|---|---|\n{stages}\n"
    )


def mlflow_name(text: str) -> str:
    """Replace the characters that MLflow refuses in names of parameters, metrics and tags."""
    return re.sub(r"[^\w\-./: ]", "_", text, flags=re.ASCII)[:250]


def milliseconds(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())
