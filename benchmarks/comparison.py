"""The runs of a params.yaml trained and tested one after the other in one process, and their table. What is there already isn't done again.

python -m benchmarks.comparison benchmarks/few_shot.yaml --images FOLDER --work FOLDER [--write FILE.md] [RUN ...]
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.tell import tell
from pipeline import config
from pipeline.checkpoint import atomic_folder
from pipeline.config import Params
from pipeline.data.prepare import prepare
from pipeline.evaluate import gain
from pipeline.record import Record
from pipeline.record import record as recording
from pipeline.report import read
from pipeline.runs import distill, learn, pretrain, train_teacher
from stages import evaluate


class Bench:
    def __init__(self, params: Params, work: Path) -> None:
        self.params, self.work, self.data = params, work, work / "data"

    def prepare(self) -> None:
        if not self.data.exists():
            with atomic_folder(self.data) as folder:
                prepare(self.params.data, folder, progress=True)
        for name, teacher in self.params.teachers.items():
            if (file := self.record("teacher", name)) is not None:
                with recording(file, "teacher", name, {"teacher": teacher.model_dump(mode="json")}) as kept:
                    train_teacher(self.params, name, kept, data=self.data, out=self.teacher(name), work=self.work / "unfinished")
        for name, knowledge in self.params.knowledge.items():
            if (file := self.record("knowledge", name)) is not None:
                with recording(file, "knowledge", name, self.params.knowledge_told(name)) as kept:
                    learn(
                        self.params, name, kept, data=self.data, teacher=self.teacher(knowledge.teacher), out=self.teacher(name),
                        work=self.work / "unfinished",
                    )  # fmt: skip

    def run(self, name: str) -> None:
        teacher, initial, students = (
            self.teacher(self.params.runs[name].teacher),
            self.work / "initial" / name,
            self.work / "students" / name,
        )
        told, unfinished = self.params.told(name), self.work / "unfinished"
        if (file := self.record("pretrain", name)) is not None:
            with recording(file, "pretrain", name, told) as kept:
                pretrain(self.params, name, kept, data=self.data, teacher=teacher, out=initial, work=unfinished)
        if (file := self.record("distill", name)) is not None:
            with recording(file, "distill", name, told) as kept:
                distill(self.params, name, kept, data=self.data, teacher=teacher, initial=initial, out=students, work=unfinished)
        if (file := self.record("evaluate", name)) is not None:
            metrics, said = self.work / "metrics" / f"{name}.json", self.work / "said" / f"{name}.npz"
            evaluate.stage(name, self.data, teacher, students, metrics, said, file)

    def teacher(self, name: str) -> Path:
        return self.work / "teachers" / name

    def record(self, stage: str, name: str) -> Path | None:
        """Where to write it, unless it's there."""
        file = self.work / "records" / stage / f"{name}.json"
        return None if file.exists() else file

    def read(self, stage: str, name: str) -> Record:
        return read(self.work / "records", stage, name)

    def table(self) -> str:
        runs = [name for name in self.params.runs if self.record("evaluate", name) is None]
        alone = next((self.accuracy(name) for name in runs if self.params.runs[name].method["name"] == "ce"), None)
        first = self.read("evaluate", runs[0])
        across = "harmonic_mean" in first.metrics
        lines = [
            f"{self.setting()} Teacher {100 * first.details['teacher']['accuracy']:.2f} %. Test accuracy, mean and standard deviation over "
            "seeds; gain over the student alone with its 95 % interval; the share of the student's gradient that the method's own terms "
            f"have in its last phase.{self.told_across(first.metrics) if across else ''}",
            "",
            f"| run | phases (epochs) | accuracy % | n | gain, points | own terms |{' joint % | harmonic mean % |' if across else ''}",
            f"|---|---|--:|--:|--:|--:|{'--:|--:|' if across else ''}",
        ]
        for name in runs:
            scores, accuracy = self.read("evaluate", name).metrics, self.accuracy(name)
            won = gain(accuracy, alone) if alone and accuracy is not alone else None
            interval = (
                f"{100 * won.mean:+.2f} [{100 * won.low:+.2f}, {100 * won.high:+.2f}]" if won and won.low is not None and won.high else ""
            )
            lines.append(
                f"| {name} | {self.phases(name)} | {100 * scores['accuracy']:.2f} ± {100 * scores['spread']:.2f} | {scores['n']:.0f} "
                f"| {interval} | {self.own_share(name)} |"
                + (f" {100 * scores['joint']:.2f} | {100 * scores['harmonic_mean']:.2f} |" if across else "")
            )
        return "\n".join(lines) + "\n"

    def told_across(self, metrics: Mapping[str, float]) -> str:
        told = " Joint and harmonic mean: among the classes of both, by nearest centre."
        if "seen_auc" in metrics:
            told += f" Lambda_i tells images of the teacher's classes from others with an AUC of {metrics['seen_auc']:.2f}."
        return told

    def setting(self) -> str:
        params, train, protocol = self.params, self.params.train, self.params.protocol
        given = f"{protocol.shots} labelled images a class" if protocol.shots else f"{protocol.fraction:.0%} of the training images"
        if protocol.class_overlap != "all":
            given += f", class_overlap {protocol.class_overlap:g}"
        nets = ", ".join(f"{teacher.net} (teacher)" for teacher in params.teachers.values())
        nets += ", " + ", ".join(f"{student.net} (student)" for student in params.students.values())
        return (
            f"{given}, {params.data.size}x{params.data.size}; {nets}; batch {train.batch_size}, {train.optimizer}, "
            f"learning rate {train.lr:g}, {train.schedule}."
        )

    def accuracy(self, name: str) -> dict[int, float]:
        return {int(seed): scores["accuracy"] for seed, scores in self.read("evaluate", name).details["seeds"].items()}

    def phases(self, name: str) -> str:
        curves = self.read("pretrain", name).curves | self.read("distill", name).curves
        return ", ".join(
            {key.partition("/")[0]: f"{key.partition('/')[0]} {curve['epoch'][-1]:.0f}" for key, curve in curves.items()}.values()
        )

    def own_share(self, name: str) -> str:
        """Mean over points and seeds."""
        shares = [
            sum(curve[column][point] for column in curve if column.startswith("share of ") and column not in ("share of ce", "share of kd"))
            for curve in self.read("distill", name).curves.values()
            for point in range(len(curve["epoch"]))
        ]
        return f"{statistics.fmean(shares):.1%}" if any(shares) else ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train and test the runs of a params.yaml in one process; print their table.")
    parser.add_argument("params", type=Path)
    parser.add_argument("runs", nargs="*", help="all of them unless named")
    parser.add_argument("--images", help="instead of data.root")
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_intermixed_args(arguments)
    params = config.load(given.params)
    if given.images:
        params = params.model_copy(update={"data": params.data.model_copy(update={"root": given.images})})
    bench = Bench(params, given.work)
    bench.prepare()
    for name in given.runs or params.runs:
        bench.run(name)
    tell(bench.table(), given.write)


if __name__ == "__main__":
    main()
