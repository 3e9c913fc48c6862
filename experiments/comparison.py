"""Train and test the runs of a params file, one after the other in one process, and print their table.

    python -m experiments.comparison recipes/tenth.yaml --work WORK [--images FOLDER] [--write FILE] [RUN ...]

WORK keeps everything that was trained. What is there is not trained again, so a command that was stopped goes
on where it was.
"""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments._script import parser_of, print_table
from pipeline.data.prepare import prepare
from pipeline.data.store import Store
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.gains import gain
from pipeline.files import atomic_folder
from pipeline.params import Params, load_params
from pipeline.project.dependencies import ROOT, listing
from pipeline.records.record import Record, recording
from pipeline.records.results import is_unbalanced, read_record
from pipeline.records.ticker import counting
from pipeline.runs.knowledge import learn_knowledge
from pipeline.runs.run import KnowledgeRun, Run
from pipeline.runs.student import distill, pretrain
from pipeline.runs.teacher import train_teacher


class Comparison:
    """The runs of `params`; their images, networks and records are in the folder `work`."""

    def __init__(self, params: Params, work: Path) -> None:
        self.params, self.work, self.data = params, work, work / "data"
        files = (path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.py"))
        self.code = hashlib.sha256(listing(files).encode()).hexdigest()

    def prepare(self) -> None:
        """The images, the teachers, and what is learned from a teacher alone."""
        if not self.data.exists():
            with atomic_folder(self.data) as folder, counting("decode") as on_decoded:
                prepare(self.params.data, folder, on_decoded=on_decoded)
        for name in self.params.teachers:
            if (file := self.missing("teacher", name)) is not None:
                run = self.params.teacher_run(name)
                with recording(file, "teacher", name, dict(run.settings)) as done:
                    done.add(train_teacher(run, **self.common, out=self.teacher(name)))
        for name in self.params.knowledge:
            if (file := self.missing("knowledge", name)) is not None:
                knowledge = self.params.knowledge_run(name)
                teacher, out = self.teacher(knowledge.teacher), self.teacher(name)
                with recording(file, "knowledge", name, dict(knowledge.settings)) as done:
                    done.add(learn_knowledge(knowledge, **self.common, teacher=teacher, out=out))

    def all(self, names: Sequence[str], write: Path | None) -> None:
        """The runs of these names, or every one, and their table, printed and in the file `write`."""
        self.prepare()
        for name in names or self.params.runs:
            self.run(name)
        print_table(self.table(), write)

    def run(self, name: str) -> None:
        """Train and test one run."""
        self.train(name)
        if (file := self.missing("evaluate", name)) is not None:
            with recording(file, "evaluate", name, {}) as done:
                teacher = self.teacher(self.params.run(name).teacher)
                result, _ = evaluate_run(self.data, teacher, self.work / "students" / name, work=self.work)
                done.add(result)
            print(f"{name}: test accuracy {result.metrics['accuracy']:.1%}", flush=True)

    def train(self, name: str) -> None:
        """Train one run, without a look at the test images."""
        run = self.params.run(name)
        teacher, initial = self.teacher(run.teacher), self.work / "initial" / name
        students = self.work / "students" / name
        if (file := self.missing("pretrain", name)) is not None:
            with recording(file, "pretrain", name, dict(run.settings)) as done:
                done.add(pretrain(run, **self.common, teacher=teacher, out=initial))
        if (file := self.missing("distill", name)) is not None:
            with recording(file, "distill", name, dict(run.settings)) as done:
                done.add(distill(run, **self.common, teacher=teacher, initial=initial, out=students))

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that all training functions share."""
        return {
            "data": self.data,
            "work": self.work / "unfinished",
            "code": self.code,
            "on_point": lambda name, curves: None,
        }

    def teacher(self, name: str) -> Path:
        return self.work / "teachers" / name

    def missing(self, stage: str, name: str) -> Path | None:
        """Where to write a record; None if it is there already."""
        file = self.work / "records" / stage / f"{name}.json"
        return None if file.exists() else file

    def read(self, stage: str, name: str) -> Record:
        return read_record(self.work / "records", stage, name)

    def table(self) -> str:
        """Markdown: a line for each run that was tested."""
        names = [name for name in self.params.runs if self.missing("evaluate", name) is None]
        baseline = next((name for name in names if self.params.runs[name].method["name"] == "ce"), None)
        first = self.read("evaluate", names[0])
        cross_task, unbalanced = "harmonic_mean" in first.metrics, self.is_unbalanced
        teacher = f"Teacher {100 * first.details['teacher']['accuracy']:.2f} %."
        lines = [
            f"{self.setting()} {teacher} {COLUMNS}{cross_task_columns(first.metrics) if cross_task else ''}"
            + (BY_CLASS if unbalanced else ""),
            "",
            "| run | phases (epochs) | accuracy % | n | gain, points | own terms |"
            + (" joint % | harmonic mean % |" if cross_task else "")
            + (" balanced % | F1 % |" if unbalanced else ""),
            "|---|---|--:|--:|--:|--:|" + "--:|--:|" * (cross_task + unbalanced),
            *(f"| {' | '.join(self.row(name, baseline))} |" for name in names),
        ]
        return "\n".join(lines) + "\n"

    def row(self, name: str, baseline: str | None) -> list[str]:
        scores = self.read("evaluate", name).metrics
        cells = [
            name,
            self.phases(name),
            self.with_spread(name, "accuracy"),
            f"{scores['n']:.0f}",
            self.gain(name, baseline) if baseline and baseline != name else "",
            self.own_share(name),
        ]
        if "harmonic_mean" in scores:
            cells += [f"{100 * scores['joint']:.2f}", f"{100 * scores['harmonic_mean']:.2f}"]
        if self.is_unbalanced:
            cells += [self.with_spread(name, score) for score in ("balanced_accuracy", "macro_f1")]
        return cells

    def with_spread(self, name: str, score: str) -> str:
        """Mean and standard deviation of a score over the seeds."""
        values = [100 * scores[score] for scores in self.read("evaluate", name).details["seeds"].values()]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.2f}{spread}"

    @property
    def is_unbalanced(self) -> bool:
        return is_unbalanced(Store.open(self.data).manifest)

    def setting(self) -> str:
        """What all runs have in common, as a sentence."""
        params, train, protocol = self.params, self.params.train, self.params.protocol
        images = (
            f"{protocol.shots} labelled images a class"
            if protocol.shots
            else f"{protocol.fraction:.0%} of the training images"
        )
        if protocol.class_overlap != "all":
            images += f", class_overlap {protocol.class_overlap:g}"
        nets = [f"{teacher.net} (teacher)" for teacher in params.teachers.values()]
        nets += [f"{student.net} (student)" for student in params.students.values()]
        return (
            f"{images}, {params.data.size}x{params.data.size}; {', '.join(nets)}; batch {train.batch_size}, "
            f"{train.optimizer}, learning rate {train.lr:g}, {train.schedule}."
        )

    def accuracy(self, name: str) -> dict[int, float]:
        """Test accuracy by seed."""
        seeds = self.read("evaluate", name).details["seeds"]
        return {int(seed): scores["accuracy"] for seed, scores in seeds.items()}

    def gain(self, name: str, baseline: str) -> str:
        """The gain over the baseline with its interval; nothing where one seed gives no interval."""
        found = gain(self.accuracy(name), self.accuracy(baseline))
        if found.low is None or found.high is None:
            return ""
        return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"

    def phases(self, name: str) -> str:
        """The phases with their epochs, or with their steps, such as `hint 15, distill 900 steps`.

        What the run's teacher has learned as knowledge comes first.
        """
        run, lengths = self.params.run(name), []
        trained: list[tuple[Run | KnowledgeRun, str, str]] = [(run, "pretrain", name), (run, "distill", name)]
        if run.teacher in self.params.knowledge:
            trained.insert(0, (self.params.knowledge_run(run.teacher), "knowledge", run.teacher))
        for of, stage, key in trained:
            curves = self.read(stage, key).curves.items()
            epochs = {curve.partition("/")[0]: columns["epoch"][-1] for curve, columns in curves}
            steps = {phase: of.training(phase).steps for phase in epochs}
            lengths += [
                f"{phase} {steps[phase]} steps" if steps[phase] else f"{phase} {round(last, 2):g}"
                for phase, last in epochs.items()
            ]
        return ", ".join(lengths)

    def own_share(self, name: str) -> str:
        """The own terms' share of the gradient in the last phase: the mean over points and seeds."""
        shares = [
            sum(
                columns[column][point]
                for column in columns
                if column.startswith("share of ") and column not in ("share of ce", "share of kd")
            )
            for columns in self.read("distill", name).curves.values()
            for point in range(len(columns["epoch"]))
        ]
        return f"{statistics.fmean(shares):.1%}" if any(shares) else ""


def load_recipe(file: Path, images: str | None) -> Params:
    """A params file, with these images in place of its own if they are given."""
    recipe = load_params(file)
    data = recipe.data.model_copy(update={"root": images}) if images else recipe.data
    return recipe.model_copy(update={"data": data})


COLUMNS = (
    "Test accuracy, mean and standard deviation over seeds; gain over the baseline with its 95 % interval; "
    "the share of the student's gradient that the method's own terms have in its last phase."
)

BY_CLASS = " Balanced: mean recall of the classes. F1: mean F1 of the classes (macro-F1)."


def cross_task_columns(metrics: Mapping[str, float]) -> str:
    """What the columns mean where teacher and student have other classes."""
    text = " Joint and harmonic mean: among the classes of both, by nearest centre."
    if "seen_auc" in metrics:
        text += (
            " Lambda_i tells images of the teacher's classes from others with an AUC of "
            f"{metrics['seen_auc']:.2f}."
        )
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("comparison", __doc__)
    parser.add_argument("params", type=Path, help="such as recipes/few_shot.yaml")
    parser.add_argument("runs", nargs="*", help="runs of this file; all of them if none is named")
    parser.add_argument("--images", help="the folder of images, in place of data.root")
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps what was trained")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_intermixed_args(arguments)
    comparison = Comparison(load_recipe(given.params, given.images), given.work)
    comparison.all(given.runs, given.write)


if __name__ == "__main__":
    main()
