"""Runs with stored answers of their teacher: the settings, and the training of one run."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from small_runs import SmallRuns, silent
from torch import Tensor, nn
from world import snapshot

from pipeline import methods
from pipeline.runs.context import Context
from pipeline.runs.phase import Trainee, train_phase
from pipeline.runs.run import Run
from pipeline.runs.student import build_student

FEW = {"shots": 4, "rest": "unlabelled"}
VIEWS, IMAGES = 2, 27  # of the train subset
QUICK: dict[str, Any] = {"epochs": 0, "steps": 6, "batch_size": 9, "lr": 0.01}  # six steps are two epochs
AUGMENT: dict[str, Any] = {"pad": 1, "flip": 0.5, "views": VIEWS}
MAPS = ["map stage1", "map stage2", "map stage3"]


@cache
def small_run(small: SmallRuns, name: str) -> Run:
    return small.params().run(name)


def run_of(method: dict[str, Any], teacher: str = "big", **more: Any) -> dict[str, Any]:
    return {"teacher": teacher, "student": "small", "seeds": [0], "method": method} | more


SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {},
    "augment": AUGMENT,
    "train": QUICK,
    "teachers": {
        "big": {"net": "resnet8", "train": QUICK | {"steps": 3}},
        "larger": {"net": "resnet8", "min_accuracy": 0, "train": QUICK | {"steps": 3}, "input": {"size": 12}},
    },
    "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm"}}},
    "runs": {name: run_of({"name": name}) for name in methods.names()}
    | {"with_atoms": run_of({"name": "srm"}, "atoms"), "kd_of_larger": run_of({"name": "kd"}, "larger")}
    | {f"{name}_of_few": run_of({"name": name}, protocol=FEW) for name in ("kd", "refilled")},
}


@dataclass
class Trained:
    """What a run's phases left."""

    weights: dict[str, Tensor]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by phase
    asked: int = 0  # images that the teacher answered to

    @property
    def made(self) -> int:
        return sum(facts.get("made", 0) for facts in self.facts.values())


def train(
    small: SmallRuns,
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    change: Callable[[nn.Module], None] = lambda net: None,
    training: dict[str, Any] | None = None,
    **augment: Any,
) -> Trained:
    """All phases of a run with such views; `folder` holds the answers. `change` is done to the teacher."""
    run = small_run(small, name)
    run = replace(
        run,
        augment=run.augment.model_copy(update=augment),
        train=run.train.model_copy(update=training or {}),
    )
    context = Context.of_students(small.data, run.protocol, run.augment)
    teacher, asked = context.load_network(small.place / run.teacher), 0
    change(teacher.net)

    def count(_: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal asked
        assert len(args[0])  # some views cannot be drawn of no images
        asked += len(args[0])

    student, method = build_student(context, run, seed, teacher)
    teacher.net.register_forward_pre_hook(count)
    done, states = Trained({}), folder / f"states-{name}-{seed}"
    for phase in method.phases(student):
        trained = train_phase(
            context,
            Trainee(seed, student, teacher, method),
            phase,
            run.training(phase.name),
            validate=None,
            folder=states,
            stage=folder / "stage",
            curve="",
            label=name,
            on_point=silent,
        )
        done.facts[phase.name] = trained.teacher
    shutil.rmtree(states, ignore_errors=True)
    return replace(done, weights=snapshot(student.net, method), asked=asked)


def assert_close(one: Trained, other: Trained, tolerance: float) -> None:
    for key, value in one.weights.items():
        torch.testing.assert_close(other.weights[key], value, rtol=tolerance, atol=tolerance)


def is_equal(one: Trained, other: Trained) -> bool:
    return all(torch.equal(other.weights[key], value) for key, value in one.weights.items())


def content(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for pattern in ("*.answers", "*.there") for file in folder.rglob(pattern)
    }
