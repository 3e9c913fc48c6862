"""How much faster a comparison trains with two runs at a time (`make run JOBS=2`).

    python -m experiments.jobs_speed [--epochs 100] [--rounds 5] [--write FILE]
    python -m experiments.insert jobs_speed FILE docs/scaling.md

It makes a project in a temporary folder, with four runs on the digits of scikit-learn, and trains its
teacher. Then the stages `pretrain` and `distill` of all runs are made in three ways, which take turns: one
run at a time with one thread, one at a time with two threads, and two at a time with one thread each. A ratio
is that of two times of the same round. The times are those of the clock, with the starts of all processes and
all that DVC does, so nothing else may run meanwhile. A new seed each time keeps DVC from remembering results.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments._script import parser_of, print_table, with_range
from pipeline.export import machine
from pipeline.project.ahead import Stage, stages_ahead
from pipeline.project.dvc import dvc
from pipeline.project.new import FILES, TEMPLATE
from pipeline.project.side_by_side import side_by_side

ROOT = Path(__file__).parents[1]
TRAINING = ("pretrain", "distill")
METHODS: Mapping[str, dict[str, Any]] = {
    "alone": {"name": "ce"},
    "kd": {"name": "kd"},
    "at": {"name": "at"},
    "sp": {"name": "sp"},
}


class Way(NamedTuple):
    jobs: int
    threads: int

    def __str__(self) -> str:
        return f"{self.jobs} at a time, {self.threads} thread{'s' * (self.threads > 1)} each"


BASE, *OTHERS = WAYS = (Way(1, 1), Way(1, 2), Way(2, 1))
Seconds = dict[Way, list[float]]


def params(epochs: int, seed: int) -> dict[str, Any]:
    run = {"teacher": "big", "student": "small", "seeds": [seed]}
    return {
        "launcher": "python",
        "data": {"source": "digits", "root": "data/raw", "size": 8, "val": 0.1, "test": 0.2},
        "augment": {"pad": 1},
        "protocol": {"shots": 0},
        "train": {"epochs": epochs, "points": 10, "batch_size": 64},
        "teachers": {"big": {"net": "resnet14", "min_accuracy": 0, "train": {"epochs": 2}}},
        "knowledge": {},
        "students": {"small": {"net": "resnet8"}},
        "runs": {name: run | {"method": method} for name, method in METHODS.items()},
        "analysis": {},
        "export": {},
        "benchmark": {},
    }


def make_project(folder: Path) -> None:
    for target, source in FILES.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATE / source, folder / target)
    (folder / "data/raw").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)  # noqa: S603, S607


def trained(way: Way, epochs: int, seed: int) -> float:
    """Seconds in which all runs of the project in this folder are trained, with a seed that is new."""
    Path("params.yaml").write_text(json.dumps(params(epochs, seed)))
    os.environ["OMP_NUM_THREADS"] = str(way.threads)
    stages = [stage for stage in stages_ahead() if stage.kind in TRAINING]
    assert all(stage.state != "up to date" for stage in stages)
    begun = time.perf_counter()
    _run(stages, way.jobs)
    return time.perf_counter() - begun


def _run(stages: Sequence[Stage], jobs: int) -> None:
    if jobs > 1:
        side_by_side(stages, jobs)
    elif code := dvc("repro", "-s", *(stage.name for stage in stages)):
        sys.exit(code)


def measure(epochs: int, rounds: int) -> Seconds:
    """Each way is first in its turn."""
    seconds: Seconds = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        make_project(Path())
        os.environ["PYTHONPATH"] = str(ROOT)  # so that the stages are those of this folder
        Path("params.yaml").write_text(json.dumps(params(epochs, 0)))
        if code := dvc("repro", "-q", "teacher"):
            sys.exit(code)
        for n in range(rounds):
            start = n % len(WAYS)
            for way in WAYS[start:] + WAYS[:start]:
                seconds[way].append(trained(way, epochs, seed=1 + sum(map(len, seconds.values()))))
    return seconds


def table(seconds: Seconds, epochs: int) -> str:
    lines = [
        f"{len(METHODS)} runs (resnet14 -> resnet8, digits, {epochs} epochs), `pretrain` and `distill` of "
        f"all. torch {torch.__version__}, {machine.cpu()['model']}, {os.cpu_count()} cores. Medians, and the "
        "smallest and the largest.",
        "",
        "| runs | seconds | times as fast | n |",
        "|---|--:|--:|--:|",
    ]
    for way, took in seconds.items():
        ratios = [one / other for one, other in zip(seconds[BASE], took, strict=True)]
        lines.append(f"| {way} | {with_range(took, 1)} | {with_range(ratios, 2)} | {len(took)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("jobs_speed", __doc__)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    write = given.write and given.write.resolve()
    print_table(table(measure(given.epochs, given.rounds), given.epochs), write)


if __name__ == "__main__":
    main()
