"""The records of all stages, read together: what each run and each teacher is, and how good it is."""

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.records.intervals import Share, of_scores
from pipeline.records.record import Record, load_record, target, write_again
from pipeline.records.selection import Select, value
from pipeline.settings import InputError

RUN_STAGES = ("pretrain", "distill", "evaluate", "export", "benchmark")
ANALYSED_STAGES = ("pretrain", "distill", "analyse", "evaluate", "export", "benchmark")


@dataclass(frozen=True)
class RunResults:
    """One run: its records by stage, and the name of its baseline.

    The baseline is the run that trains the same student net on the same data without a teacher. It is None if
    there is no such run, or if this run itself has no teacher.
    """

    name: str
    records: dict[str, Record]
    baseline: str | None

    @property
    def params(self) -> dict[str, Any]:
        return self.records["distill"].params

    @property
    def method(self) -> str:
        return str(self.params["run"]["method"]["name"])

    @property
    def teacher(self) -> str:
        return str(self.params["run"]["teacher"])

    @property
    def knowledge(self) -> str | None:
        """The name of the `knowledge` entry that is its teacher, if it is one."""
        return next(iter(self.params.get("knowledge", {})), None)

    @property
    def student(self) -> str:
        """The student's net."""
        return str(self.params["student"]["net"])

    @property
    def validation(self) -> float:
        """Accuracy on validation, the mean over seeds."""
        return self.records["distill"].metrics["val_accuracy"]

    @property
    def select(self) -> Select:
        """What its students were chosen by on validation."""
        select: Select = self.records["distill"].details.get("select", "accuracy")
        return select

    @property
    def accuracy(self) -> dict[int, float]:
        """Test accuracy by seed."""
        seeds = self.records["evaluate"].details["seeds"]
        return {int(seed): scores["accuracy"] for seed, scores in seeds.items()}

    @property
    def mean_accuracy(self) -> float:
        """Test accuracy, the mean over seeds."""
        return self.records["evaluate"].metrics["accuracy"]

    @property
    def per_class(self) -> dict[str, float]:
        """Test accuracy of each class that has test images, the mean over seeds."""
        tested = self.records["evaluate"].details
        columns = zip(*(scores["per_class"] for scores in tested["seeds"].values()), strict=True)
        return {
            name: statistics.fmean(seeds)
            for name, seeds in zip(tested["classes"], columns, strict=True)
            if None not in seeds
        }

    @property
    def analysis(self) -> Record | None:
        """The record of stage `analyse`, if params.yaml asks to analyse this run."""
        return self.records.get("analyse")

    @property
    def exported_seed(self) -> int:
        return int(self.records["evaluate"].details["exported_seed"])

    @property
    def file_scores(self) -> dict[str, Any]:
        """On the test images: the scores of the seed whose student is in the bundle."""
        scores: dict[str, Any] = self.records["evaluate"].details["seeds"][str(self.exported_seed)]
        return scores

    @property
    def file_accuracy(self) -> Share:
        """Test accuracy of the exported file, with its interval."""
        return of_scores(self.file_scores)

    @property
    def int8_accuracy(self) -> float | None:
        """Test accuracy of the int8 file; None if none ships."""
        int8 = self.records["export"].details["formats"].get("int8", {})
        return int8["test"]["accuracy"] if int8.get("accepted") else None


@dataclass(frozen=True)
class Results:
    """The records of the runs and teachers that were asked for, in that order."""

    prepare: Record
    teachers: dict[str, Record]
    knowledge: dict[str, Record]  # of the teachers of some runs
    runs: dict[str, RunResults]

    @property
    def best(self) -> RunResults:
        """The run that is best on validation. The test images decide nothing."""
        return self.ranked[0]

    @property
    def ranked(self) -> list[RunResults]:
        """The runs, best on validation first."""
        return sorted(self.runs.values(), key=self.value, reverse=True)

    @property
    def select(self) -> Select:
        """What the best run is chosen by: what all runs chose their students by, or else accuracy."""
        chosen = {run.select for run in self.runs.values()}
        return chosen.pop() if len(chosen) == 1 else "accuracy"

    def value(self, run: RunResults) -> float:
        """The score on validation by which the best run is chosen, the mean over seeds."""
        return value(run.records["distill"].metrics, self.select)

    @property
    def is_unbalanced(self) -> bool:
        return is_unbalanced(self.prepare.details["manifest"])

    @property
    def records(self) -> list[Record]:
        """All records, in the order of the graph."""
        of_runs = (record for run in self.runs.values() for record in run.records.values())
        return [self.prepare, *self.teachers.values(), *self.knowledge.values(), *of_runs]

    def file_value(self, run: RunResults) -> float | None:
        """The score on validation by which the exported seed was chosen; old records do not have it."""
        of_seed = f"/seed-{run.exported_seed}"
        metrics = run.records["distill"].metrics
        own = {key.removesuffix(of_seed): each for key, each in metrics.items() if key.endswith(of_seed)}
        return value(own, self.select) if own else None

    def run_of_teacher(self, teacher: str) -> RunResults | None:
        """A run with this teacher: its records hold the teacher's scores and speed too."""
        return next((run for run in self.runs.values() if run.teacher == teacher), None)


def load_results(
    records: Path, runs: Sequence[str], teachers: Sequence[str], *, analysed: Collection[str] = ()
) -> Results:
    """Read the records of these runs and teachers only. `analysed` names the runs that have an analysis."""
    stages = {name: ANALYSED_STAGES if name in analysed else RUN_STAGES for name in runs}
    loaded = {
        name: RunResults(name, {stage: read_record(records, stage, name) for stage in stages[name]}, None)
        for name in runs
    }
    without_teacher = [run for run in loaded.values() if run.method == "ce"]
    loaded = {name: replace(run, baseline=_baseline(run, without_teacher)) for name, run in loaded.items()}
    return Results(
        prepare=read_record(records, "prepare"),
        teachers={name: read_record(records, "teacher", name) for name in teachers},
        knowledge={
            run.knowledge: read_record(records, "knowledge", run.knowledge)
            for run in loaded.values()
            if run.knowledge
        },
        runs=loaded,
    )


def is_unbalanced(manifest: Mapping[str, Any]) -> bool:
    """Whether the largest class of the test images has more than twice as many as the smallest."""
    counts: dict[str, int] = manifest["per_class"]["test"]
    return max(counts.values()) > 2 * min(counts.values())


def read_record(records: Path, stage: str, name: str | None = None) -> Record:
    """The record of a stage, or of one of its runs or teachers. An error says which command writes it."""
    path, wanted = records / (f"{stage}/{name}.json" if name else f"{stage}.json"), target(stage, name)
    try:
        record = load_record(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no record of stage {wanted}. Run `dvc repro {wanted}` first."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise InputError(
            f"{path}: this is not a record of stage {wanted} ({error}). {write_again(wanted)}"
        ) from error
    if (record.stage, record.name) != (stage, name or stage):
        raise InputError(
            f"{path}: this is the record of {target(record.stage, record.name)}, not of {wanted}. "
            f"{write_again(wanted)}"
        )
    return record


def _baseline(run: RunResults, without_teacher: Sequence[RunResults]) -> str | None:
    """Of several candidates the best on validation: a gain over a weak one would say nothing."""
    candidates = [each for each in without_teacher if _setting(each) == _setting(run)]
    if run.method == "ce" or not candidates:
        return None
    return max(candidates, key=lambda each: each.validation).name


def _setting(run: RunResults) -> str:
    """Runs are comparable if they train the same student net on the same data."""
    return json.dumps([run.student, run.params["protocol"]], sort_keys=True)
