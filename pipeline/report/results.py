"""The records of all stages as one thing to read from: what each run and each teacher left behind."""

import json
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.inputs import InputError
from pipeline.record import SCHEMA, Record

if TYPE_CHECKING:
    from pipeline.evaluate import Gain

RUN_STAGES = ("pretrain", "distill", "evaluate", "export", "benchmark")
LOOKED_INTO = ("pretrain", "distill", "analyse", "evaluate", "export", "benchmark")


@dataclass(frozen=True)
class Run:
    """One student: its records by stage, and the run of the student alone that it is measured against."""

    name: str
    records: dict[str, Record]
    baseline: str | None

    @property
    def params(self) -> dict[str, Any]:
        return self.records["distill"].params

    @property
    def method(self) -> str:
        return self.params["run"]["method"]["name"]

    @property
    def teacher(self) -> str:
        return self.params["run"]["teacher"]

    @property
    def knowledge(self) -> str | None:
        """The entry of `knowledge` whose teacher it has, if it is one of those."""
        return next(iter(self.params.get("knowledge", {})), None)

    @property
    def student(self) -> str:
        return self.params["student"]["net"]

    @property
    def validation(self) -> float:
        return self.records["distill"].metrics["val_accuracy"]

    @property
    def accuracy(self) -> dict[int, float]:
        """Test accuracy by seed."""
        return {int(seed): scores["accuracy"] for seed, scores in self.records["evaluate"].details["seeds"].items()}

    @property
    def per_class(self) -> dict[str, float]:
        """Test accuracy of each class that has test images, the mean over seeds."""
        tested = self.records["evaluate"].details
        columns = zip(*(scores["per_class"] for scores in tested["seeds"].values()), strict=True)
        return {name: statistics.fmean(seeds) for name, seeds in zip(tested["classes"], columns, strict=True) if None not in seeds}

    @property
    def confusion(self) -> list[list[int]]:
        """Of the exported seed; rows: actual, columns: predicted."""
        return self.records["evaluate"].details["seeds"][str(self.exported_seed)]["confusion"]

    @property
    def analysis(self) -> Record | None:
        """What its students have become beyond their accuracy, if somebody asked."""
        return self.records.get("analyse")

    @property
    def exported_seed(self) -> int:
        return self.records["evaluate"].details["exported_seed"]


@dataclass(frozen=True)
class Results:
    """Everything that the names asked for left behind, in the order asked."""

    prepare: Record
    teachers: dict[str, Record]
    knowledge: dict[str, Record]  # what some runs' teachers have learned once for all of them
    runs: dict[str, Run]

    @property
    def best(self) -> Run:
        """The student that is best on validation: the test set decides nothing."""
        return max(self.runs.values(), key=lambda run: run.validation)

    @property
    def ranked(self) -> list[Run]:
        """The best on validation first."""
        return sorted(self.runs.values(), key=lambda run: -run.validation)

    @property
    def records(self) -> list[Record]:
        """In the order of the graph."""
        learned = (*self.teachers.values(), *self.knowledge.values())
        return [self.prepare, *learned, *(record for run in self.runs.values() for record in run.records.values())]

    def taught_by(self, teacher: str) -> Run | None:
        """A run whose records also hold the measurements of this teacher."""
        return next((run for run in self.runs.values() if run.teacher == teacher), None)


def load(records: Path, runs: Sequence[str], teachers: Sequence[str], *, analysed: Collection[str] = ()) -> Results:
    """The records of these runs and teachers; what else lies in the folder belongs to nobody any more. `analysed` are some of the runs."""
    stages = {name: LOOKED_INTO if name in analysed else RUN_STAGES for name in runs}
    found = {name: {stage: read(records, stage, name) for stage in stages[name]} for name in runs}
    alone: dict[str, list[Run]] = {}
    for name, own in found.items():
        run = Run(name, own, None)
        if run.method == "ce":
            alone.setdefault(_setting(run), []).append(run)
    loaded = {}
    for name, own in found.items():
        run = Run(name, own, None)
        rivals = [] if run.method == "ce" else alone.get(_setting(run), [])
        # of several students alone the strongest on validation: a gain over a weak one would say nothing
        loaded[name] = Run(name, own, max(rivals, key=lambda rival: rival.validation).name if rivals else None)
    return Results(
        prepare=read(records, "prepare"),
        teachers={name: read(records, "teacher", name) for name in teachers},
        knowledge={run.knowledge: read(records, "knowledge", run.knowledge) for run in loaded.values() if run.knowledge},
        runs=loaded,
    )


def read(records: Path, stage: str, name: str | None = None) -> Record:
    """The record of a stage, or of one of its runs or teachers; the error says which stage writes it."""
    path = records / (f"{stage}/{name}.json" if name else f"{stage}.json")
    target = f"{stage}@{name}" if name else stage
    again = f"Run `dvc repro -f -s {target}` to write it again."
    try:
        record = Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no record of stage {target}. Run `dvc repro {target}` first.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{path}: not a record of stage {target} ({error}). {again}") from error
    if (record.schema, record.stage, record.name) != (SCHEMA, stage, name or stage):
        raise InputError(f"{path}: this is schema {record.schema} of {record.stage} {record.name}, not {SCHEMA} of {target}. {again}")
    return record


def gains(results: Results) -> "dict[str, Gain]":
    """What each run gained over the student alone; runs with nothing to compare to are left out."""
    from pipeline.evaluate import gain

    return {run.name: gain(run.accuracy, results.runs[run.baseline].accuracy) for run in results.runs.values() if run.baseline is not None}


def rivals(results: Results) -> list[tuple[Run, tuple[float, float, float]]]:
    """Every other method in the best student's setting, with the accuracies of the best, of its own, and of the student alone.

    Left out are those that gain no more over the student alone than that varies from seed to seed: to compare with so little says nothing.
    """
    best = results.best
    if best.baseline is None:
        return []
    ours, alone = best.records["evaluate"].metrics["accuracy"], results.runs[best.baseline].records["evaluate"].metrics
    found = []
    for run in results.ranked:
        theirs = run.records["evaluate"].metrics["accuracy"]
        if run is not best and run.baseline == best.baseline and theirs - alone["accuracy"] > alone["spread"]:
            found.append((run, (ours, theirs, alone["accuracy"])))
    return found


def _setting(run: Run) -> str:
    """Runs are comparable when they train the same student net on the same data."""
    return json.dumps([run.student, run.params["protocol"]], sort_keys=True)
