"""What a row says, from records alone: names, numbers, curves and hashes in the words that MLflow accepts."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline import report
from pipeline.record import Record


@dataclass(frozen=True)
class Row:
    """What becomes one MLflow run: a student or a teacher, with everything known of it."""

    kind: str
    name: str
    shared: list[Record]  # of the stages that other rows rest on too: prepare, a student's teacher and what that has learned for several
    own: list[Record]  # of the stages that worked for this row alone, in the order of the graph
    headline: dict[str, float]
    versus: list[str]  # ids of further records that the headline depends on

    @property
    def records(self) -> list[Record]:
        return [*self.shared, *self.own]

    @property
    def key(self) -> str:
        """The same executions give the same row, whenever and wherever it is logged."""
        ids = [self.kind, self.name, *(record.id for record in self.records), *self.versus]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]

    @property
    def end(self) -> int:
        return milliseconds(self.own[-1].finished)

    @property
    def start(self) -> int:
        """So that the duration is that of its own work, not of the shared stages'."""
        return self.end - round(1000 * sum(record.seconds for record in self.own))


def of(results: report.Results) -> list[Row]:
    """The teachers' rows, then the runs'."""
    gains = report.gains(results)
    return [
        *(_of_a_teacher(results, name) for name in results.teachers),
        *(_of_a_run(results, run, gains[run.name].mean if run.name in gains else None) for run in results.runs.values()),
    ]


def _of_a_run(results: report.Results, run: report.Run, gain: float | None) -> Row:
    scores = run.records["evaluate"].metrics
    headline = {"by_val": run.validation, "top1": scores["accuracy"], "spread": scores["spread"]}
    headline |= ({} if gain is None else {"gain": gain}) | _cost(run.records["benchmark"].metrics)
    versus = [results.runs[run.baseline].records["evaluate"].id] if run.baseline else []
    shared = [results.prepare, results.teachers[run.teacher], *([results.knowledge[run.knowledge]] if run.knowledge else [])]
    return Row("run", run.name, shared, list(run.records.values()), headline, versus)


def _of_a_teacher(results: report.Results, name: str) -> Row:
    headline: dict[str, float] = {}  # nothing to rank it by: the view ends with the teachers
    run = results.taught_by(name)
    if run is not None:
        headline = {"top1": run.records["evaluate"].details["teacher"]["accuracy"]} | _cost(run.records["benchmark"].details["teacher"])
        headline.pop("latency_ms", None)  # measured in PyTorch: beside the students' ONNX files it would flatter them
    return Row("teacher", name, [results.prepare], [results.teachers[name]], headline, [])


def _cost(speed: Mapping[str, float]) -> dict[str, float]:
    names = {"latency_ms": "latency_ms", "size_mb": "size_mb", "params_m": "parameters_m"}
    return {ours: speed[theirs] for ours, theirs in names.items() if theirs in speed}


def params(row: Row) -> dict[str, str]:
    """What the stages read; where two read different values under one name, the later stage's is named after it."""
    told: dict[str, str] = {}
    for record in row.records:
        for key, value in flat(record.params):
            if told.setdefault(named(key), value) != value:
                told[named(f"{record.stage}.{key}")] = value
    return told


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def points(row: Row) -> Iterator[tuple[str, float, int, int]]:
    """Name, value, milliseconds and step: one point for each final number, then the curves, but for those that a teacher's row has.

    MLflow's pages keep this order, and compare runs by the metric that comes first.
    """
    for key, value in row.headline.items():
        yield f"best/{key}", round(value, 5), row.end, 0  # as `dvc metrics show` has them: a column of the list is narrow
    for record in reversed(row.records):
        for key, value in record.metrics.items():
            yield named(f"{record.stage}/{key}"), value, milliseconds(record.finished), 0
    for record in row.records:
        if record.stage == "teacher" and row.kind == "run":
            continue
        before = 0.0
        for key, curve in record.curves.items():
            yield from series(key, curve, begin=milliseconds(record.started) + 1000 * before)
            before += curve["seconds"][-1]


def series(key: str, curve: Mapping[str, list[float]], *, begin: float, first: int = 0) -> Iterator[tuple[str, float, int, int]]:
    """The points of a curve that began at this millisecond, from the first asked for."""
    # a teacher's curve is named as its stage; its last value must not be mistaken for the final number
    prefix = key if "/" in key else f"{key}/epochs"
    for i in range(first, len(curve["epoch"])):
        for column in curve.keys() - {"epoch"}:
            yield named(f"{prefix}/{column}"), curve[column][i], round(begin + 1000 * curve["seconds"][i]), round(curve["epoch"][i])


def tags(row: Row) -> dict[str, str]:
    """Which executions, of which data, networks and code, on what kind of machine."""
    said = {"kind": row.kind, "pipeline_key": row.key}
    said |= {f"hash.{key}": value for key, value in hashes(row).items()}
    said |= {f"stage.{record.stage}": record.id for record in row.records}
    return said | {f"environment.{named(key)}": str(value) for key, value in row.own[0].environment.items()}


def hashes(row: Row) -> dict[str, str]:
    """Of the data and of what was made of it: the same hash is the same thing."""
    records = {record.stage: record for record in row.records}
    found = {"data": row.shared[0].details["manifest"]["content"], "teacher": _digest(records["teacher"].outputs)}
    if row.kind == "run":
        found |= {"student": _digest(records["distill"].outputs), "bundle": _digest(records["export"].outputs)}
        if code := records["export"].details.get("provenance", {}).get("code"):
            found["code"] = code
    return found


def _digest(outputs: Mapping[str, str]) -> str:
    return next(iter(outputs.values())) if len(outputs) == 1 else hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def description(row: Row, makers: Mapping[str, str]) -> str:
    """What the page of a row begins with; `makers` says in Markdown which row the cached stages were made for."""
    numbers = " · ".join(f"{WORDS[key]} **{value:.4g}**" for key, value in row.headline.items())
    stages = "\n".join(
        f"| {r.stage} {r.name} | {f'cached, made by {makers[r.stage]}' if r.stage in makers else 'this row'} "
        f"| {r.finished[:19].replace('T', ' ')} | {r.seconds:.1f} | `{r.id[:8]}` |"
        for r in row.records
    )
    return (
        f"{'The student of run' if row.kind == 'run' else 'The teacher'} **{row.name}**: {numbers}\n\n"
        f"| stage | made for | finished (UTC) | seconds | record |\n|---|---|---|---|---|\n{stages}\n"
    )


WORDS = {
    "by_val": "accuracy on validation (the best is chosen by it)",
    "top1": "accuracy on the test set",
    "spread": "its standard deviation over seeds",
    "gain": "gain over the student alone",
    "latency_ms": "milliseconds an image, ONNX on the CPU",
    "size_mb": "MB",
    "params_m": "million parameters",
}


def named(text: str) -> str:
    """MLflow refuses other characters in the names of parameters, metrics and tags."""
    return re.sub(r"[^\w\-./: ]", "_", text, flags=re.ASCII)[:250]


def milliseconds(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())
