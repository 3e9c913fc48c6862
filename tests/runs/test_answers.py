"""A teacher's answers to fixed views: stored once, read by all runs, and as good as the teacher itself."""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SmallRuns, silent
from torch import Tensor, nn
from world import snapshot

from pipeline import checkpoint, methods
from pipeline.files import locked
from pipeline.params import Params
from pipeline.runs import answer_file, answers, parts_read
from pipeline.runs.answer_file import AnswerFile
from pipeline.runs.answer_key import depends_on, key_of
from pipeline.runs.context import Context
from pipeline.runs.phase import Trainee, train_phase
from pipeline.runs.student import build_student
from pipeline.settings import InputError
from pipeline.taps import Answer, InParts, Tapped

VIEWS, IMAGES = 2, 27  # of the train subset
QUICK: dict[str, Any] = {"epochs": 0, "steps": 6, "batch_size": 9, "lr": 0.01}  # six steps are two epochs
AUGMENT: dict[str, Any] = {"pad": 1, "flip": 0.5, "views": VIEWS}
MAPS = ["map stage1", "map stage2", "map stage3"]


def run_of(method: dict[str, Any], teacher: str = "big", **more: Any) -> dict[str, Any]:
    return {"teacher": teacher, "student": "small", "seeds": [0], "method": method} | more


SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {},
    "augment": AUGMENT,
    "train": QUICK,
    "teachers": {
        "big": {"net": "resnet8", "train": QUICK | {"steps": 3}},
        "larger": {"net": "resnet8", "train": QUICK | {"steps": 3}, "input": {"size": 12}},
    },
    "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm"}}},
    "runs": {name: run_of({"name": name}) for name in methods.names()}
    | {"with_atoms": run_of({"name": "srm"}, "atoms"), "kd_of_larger": run_of({"name": "kd"}, "larger")},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    small = SmallRuns(tmp_path_factory.mktemp("answers"), SETTINGS, images=45)
    small.train_teacher("big")
    small.train_teacher("larger")
    return small


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_file, "PRECISION", np.dtype(np.float32))


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
    params: Params | None = None,
    change: Callable[[nn.Module], None] = lambda net: None,
) -> Trained:
    """All phases of a run; `folder` holds the answers. `change` is done to the teacher."""
    run = (params or small.params()).run(name)
    context = Context.of_students(small.data, run.protocol, run.augment)
    teacher, asked = context.load_network(small.place / run.teacher), 0
    change(teacher.net)

    def count(_: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal asked
        asked += len(args[0])

    student, method = build_student(context, run, seed, teacher)
    teacher.net.register_forward_pre_hook(count)
    done = Trained({})
    for phase in method.phases(student):
        trained = train_phase(
            context,
            Trainee(seed, student, teacher, method),
            phase,
            run.training(phase.name),
            validate=None,
            folder=folder / "states" / f"{name}-{seed}-{run.augment.views_gb}",
            answers=folder / "answers",
            curve="",
            label=name,
            on_point=silent,
        )
        done.facts[phase.name] = trained.teacher
    shutil.rmtree(folder / "states", ignore_errors=True)
    return replace(done, weights=snapshot(student.net, method), asked=asked)


def augmented(small: SmallRuns, **settings: Any) -> Params:
    return small.params(augment=AUGMENT | settings)


def assert_close(one: Trained, other: Trained, tolerance: float) -> None:
    for key, value in one.weights.items():
        torch.testing.assert_close(other.weights[key], value, rtol=tolerance, atol=tolerance)


def is_equal(one: Trained, other: Trained) -> bool:
    return all(torch.equal(other.weights[key], value) for key, value in one.weights.items())


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for pattern in ("*.answers", "*.there") for file in folder.rglob(pattern)}


READ: dict[str, dict[str, list[str] | str]] = {
    "ce": {"distill": []},
    "kd": {"distill": ["logits"]},
    "at": {"distill": MAPS},
    "crd": {"distill": ["pooled"]},
    "irg": {"distill": ["logits", *MAPS, "pooled"]},
    "fitnet": {"hint": ["map stage2"], "distill": ["logits"]},
    "ofd": {"distill": [f"preactivation {name[4:]}" for name in MAPS]},
    "refilled": {"embed": ["pooled"], "distill": ["pooled"]},
    "jacobian": {"distill": "this phase differentiates through it"},
    "knowledge_representing": {
        "aggregate": "this phase runs more of it than its answer needs",
        "distill": ["logits"],
    },
}


@pytest.mark.parametrize(
    "name", [name if name in READ else pytest.param(name, marks=pytest.mark.slow) for name in methods.names()]
)
def test_each_method_learns_the_same_from_stored_answers(
    name: str, small: SmallRuns, tmp_path: Path, in_float32: None
) -> None:
    live = train(small, name, tmp_path, params=augmented(small, views_gb=0))
    stored = train(small, name, tmp_path)
    found = {phase: facts.get("live", facts["read"]) for phase, facts in stored.facts.items()}
    assert found == READ.get(name, found)
    assert_close(live, stored, 2e-4)
    assert all("live" in facts or not facts["read"] for facts in live.facts.values())
    if all(isinstance(each, list) for each in found.values()):  # then the teacher is asked by trials alone
        assert stored.asked == stored.made + 9 * sum(bool(each) for each in found.values())


@pytest.mark.parametrize("name", ["kd", "at", "crd"])
def test_half_precision_changes_little(name: str, small: SmallRuns, tmp_path: Path) -> None:
    stored = train(small, name, tmp_path)
    live = train(small, name, tmp_path, params=augmented(small, views_gb=0))
    assert not is_equal(live, stored)
    assert_close(live, stored, 5e-3)
