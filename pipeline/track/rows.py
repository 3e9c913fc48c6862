"""What a row says, from records alone: names, numbers, settings and hashes, in a form that MLflow accepts."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.records.record import Record
from pipeline.records.results import Results, RunResults
from pipeline.report.run_gains import gains_over_baseline
from pipeline.report.words import file_in_words, file_with_interval, kinds_left_out, left_out
from pipeline.track import measures, shown_settings
from pipeline.track.measures import MEANINGS
from pipeline.track.naming import Point, milliseconds
from pipeline.track.trainings import Training, parts_by_seed

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain

CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
FORM = "4"  # of names, curves and children; a row of these executions in another form is written again
CURVE = "accuracy_val"  # of the student that is exported, so that a chart of rows has its line


@dataclass(frozen=True)
class Row:
    """What becomes one MLflow run: a student or a teacher."""

    kind: str  # "run" or "teacher"
    name: str
    shared: list[Record]  # of stages that other rows need too: prepare, a student's teacher and its knowledge
    own: list[Record]  # of the stages that worked for this row only, in the order of the graph
    headline: dict[str, float]  # its metrics
    shown: dict[str, str]  # what a list of rows shows as text
    params: dict[str, str]  # the settings to compare rows by
    trainings: list[Training]
    in_words: str
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
    return of_teachers + [_run_row(results, run, gains.get(name)) for name, run in results.runs.items()]


def _run_row(results: Results, run: RunResults, gain: "Gain | None") -> Row:
    baseline = [results.runs[run.baseline].records["evaluate"].id] if run.baseline else []
    knowledge = [results.knowledge[run.knowledge]] if run.knowledge else []
    teacher = results.teachers[run.teacher]
    return Row(
        kind="run",
        name=run.name,
        shared=[results.prepare, teacher, *knowledge],
        own=list(run.records.values()),
        headline=measures.of_run(results, run, gain),
        shown={"accuracy": file_with_interval(run)} | ({"gain": _short(gain)} if gain else {}),
        params=shown_settings.of_run(run.params, _data(results), teacher.params["teacher"]["net"]),
        trainings=_trainings(run, knowledge),
        in_words=f"The file to deploy is {file_in_words(results, run)}",
        compared_with=baseline,
    )


def _teacher_row(results: Results, name: str) -> Row:
    record = results.teachers[name]
    trainings = [
        Training(f"{name} training", None, parts, measures.of_usage(record))
        for parts in parts_by_seed([record]).values()
    ]
    return Row(
        kind="teacher",
        name=name,
        shared=[results.prepare],
        own=[record],
        headline=measures.of_teacher(results, name, record),
        shown={},
        params=shown_settings.of_teacher(record.params, _data(results)),
        trainings=trainings,
        in_words="The teacher, on the test images and as an exported file.",
        compared_with=[],
    )


def _short(gain: "Gain") -> str:
    """Percentage points, and half of the 95 % interval: a column of MLflow's list has room for no more."""
    half = "" if gain.high is None else f" ± {100 * (gain.high - gain.mean):.1f}"
    return f"{100 * gain.mean:+.1f}{half}"


def _data(results: Results) -> Mapping[str, Any]:
    data: Mapping[str, Any] = results.prepare.params.get("data", {})
    return data


def _trainings(run: RunResults, knowledge: list[Record]) -> list[Training]:
    """Of each seed, and of what was learned of the teacher alone."""
    of_seeds = parts_by_seed([run.records["pretrain"], run.records["distill"]])
    of_knowledge = {key: parts for key, parts in parts_by_seed(knowledge).items() if parts}
    return [
        Training(
            name=f"{run.name} seed {seed}",
            seed=seed,
            parts=parts,
            metrics=measures.of_seed(run, seed) if seed in run.accuracy else {},
            exported=seed == run.exported_seed,
        )
        for seed, parts in of_seeds.items()
        if seed is not None
    ] + [Training(f"{run.knowledge} training", None, parts) for parts in of_knowledge.values()]


def points(row: Row) -> Iterator[Point]:
    """MLflow's pages keep this order, and compare runs by the metric that comes first."""
    for key, value in row.headline.items():
        yield key, value, row.end, 0
    for training in row.trainings:
        if training.exported:
            yield from (point for point in training.points() if point[0] == CURVE)


def tags(row: Row) -> dict[str, str]:
    """What rows are found by, and what a list of them shows as text."""
    kinds = kinds_left_out(_manifest(row))
    return {
        "kind": row.kind,
        "form": FORM,
        "pipeline_key": row.key,
        **row.shown,
        **({"left_out": kinds} if kinds else {}),
        **{f"stage.{record.stage}": record.id for record in row.records},
    }


def origin(row: Row) -> dict[str, Any]:
    """Hashes, settings and machines: what proves where a row comes from, but is not for reading."""
    return {
        "hashes": hashes(row),
        "records": {record.stage: record.id for record in row.records},
        "params": {record.stage: record.params for record in row.records},
        "environments": {record.stage: record.environment for record in row.records},
    }


def splits(row: Row) -> Iterator[tuple[str, str, dict[str, int]]]:
    """The parts of the data: what each is for, its hash, and how many images it has."""
    manifest, distilled = _manifest(row), [r for r in row.own if r.stage == "distill"]
    for split, context in CONTEXTS.items():
        images, digest = manifest["splits"].get(split, 0), manifest["content"]
        if split == "train" and distilled:
            subset = distilled[0].details["subset"]
            images, digest = subset["images"], subset["sha256"]
        yield context, f"{digest[:24]}-{split}", {"num_rows": images, "classes": len(manifest["classes"])}


def hashes(row: Row) -> dict[str, str]:
    """Hashes of the data, of the code that trained the student, and of what was made."""
    records = {record.stage: record for record in row.records}
    found = {
        "data": _manifest(row)["content"],
        "teacher": _digest(records["teacher"].outputs),
    }
    if row.kind == "run":
        found["student"] = _digest(records["distill"].outputs)
        found["bundle"] = _digest(records["export"].outputs)
        found["code"] = records["distill"].inputs["code"]
    return found


def _manifest(row: Row) -> Mapping[str, Any]:
    """Of the data, in the record of `prepare`."""
    manifest: Mapping[str, Any] = row.shared[0].details["manifest"]
    return manifest


def _digest(outputs: Mapping[str, str]) -> str:
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def description(row: Row, makers: Mapping[str, str]) -> str:
    """The text above a row, in Markdown. `makers` links each cached stage to the row that it was made for."""
    numbers = "\n".join(
        f"| `{key}` | **{value:.5g}** | {MEANINGS[key]} |" for key, value in row.headline.items()
    )
    stages = "\n".join(
        f"| {r.stage} {r.name} | {f'cached, made by {makers[r.stage]}' if r.stage in makers else 'this row'} "
        f"| {r.finished[:19].replace('T', ' ')} | {r.seconds:.1f} | `{r.id[:8]}` |"
        for r in row.records
    )
    gain = f" Its method gains {row.shown['gain']} points over the baseline." if "gain" in row.shown else ""
    return (
        f"{'The student of run' if row.kind == 'run' else 'The teacher'} **{row.name}**. {row.in_words}"
        f"{gain} Its trainings are the runs below it, each with its own curves. {left_out(_manifest(row))} "
        "Hashes, all settings and the machines are in the artifact `origin.json`.\n\n"
        f"| metric | | what it is |\n|---|--:|---|\n{numbers}\n\n"
        f"| stage | made for | finished (UTC) | seconds | record |\n|---|---|---|---|---|\n{stages}\n"
    )
