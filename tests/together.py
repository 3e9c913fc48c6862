"""Two processes that train together, forked from one, so that torch is imported once for all of them.

`python together.py OUT` reads what to do, as JSON: {function: argument}. It writes what came of it to OUT.
"""

import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from batchless import Staged
from small_runs import SmallRuns, silent
from torch import Tensor
from world import QUICK, World, moved, snapshot

from pipeline.params import load_params
from pipeline.project.command import command
from pipeline.records.record import Curves
from pipeline.runs.context import Context
from pipeline.runs.student import distill, pretrain
from pipeline.runs.teacher import train_teacher
from pipeline.runs.work_folder import work_folder
from pipeline.settings import InputError
from pipeline.taps import processes
from pipeline.taps.tapped import Tapped
from pipeline.training import state
from pipeline.training.recipe import TrainConfig

Weights = dict[str, Tensor]
LONGEST = 1500.0  # seconds that some processes may take, on a busy machine
DEPENDS: dict[str, Any] = {"settings": {"epochs": 3}, "inputs": {"data": "d", "code": "c"}}


def in_processes(count: int, work: Callable[..., Any], *arguments: Any, check: bool = True) -> list[Any]:
    """What `work` returns in each of so many processes; without `check`, their exit codes."""
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        fork = multiprocessing.get_context("fork")
        children = [
            fork.Process(target=_child, args=(Path(place), port, rank, count, work, arguments))
            for rank in range(count)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(max(0.0, LONGEST + begun - time.monotonic()))
        for child in children:
            child.kill()
        codes = [child.exitcode for child in children]
        if not check:
            return codes
        assert codes == [0] * count, f"{work.__name__}: the processes ended with {codes}"
        return [torch.load(Path(place) / str(rank), weights_only=True) for rank in range(count)]


def _child(
    place: Path, port: int, rank: int, count: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    if count > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    processes.BUCKET = 2_000  # several of them, though the networks are small
    torch.save(work(*arguments), place / str(rank))


def world_of(student: str, seed: int = 0) -> World:
    """`staged` is a student without batch norm; it is also that of `few labels`."""
    world = World.make(seed=seed)
    world.teacher = World.make().teacher
    if student in ("staged", "few labels"):
        torch.manual_seed(seed)
        world.student = Tapped(Staged(), world.step(2).images)
    return world


Case = tuple[
    str, dict[str, Any], str, dict[str, Any]
]  # a method, its settings, the student, those of training


class Training:
    """A method and a student, for this process."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        name, settings, student, options = case
        self.world, self.accelerator = world_of(student, seed), Accelerator(cpu=True)
        self.has_few_labels = student == "few labels"
        self.cfg = TrainConfig.model_validate(QUICK.model_dump() | options)
        self.method = self.world.method(name, **settings)
        self.phases = range(len(self.method.phases(self.world.student)))

    def fit(self, phase: int, **options: Any) -> Curves:
        shard = (self.accelerator.process_index, self.accelerator.num_processes)
        few: dict[str, Any] = {"labelled": 8, "unlabelled_share": 0.5} if self.has_few_labels else {}
        batches = self.world.batches(self.cfg.batch_size, shard=shard, **few)
        common = {"batches": batches, "accelerator": self.accelerator}
        curves = self.world.fit(self.method, phase, self.cfg, **common | options)
        return {name: column for name, column in curves.items() if name != "seconds"}

    def weights(self) -> Weights:
        return snapshot(self.world.student.net, self.method)


def trained(case: Case) -> tuple[Weights, list[Curves]]:
    """The weights of student and method after all phases of a method, and the curves of each."""
    training = Training(case)
    curves = [training.fit(n) for n in training.phases]
    return training.weights(), curves


def all_trained(cases: list[Case]) -> list[tuple[Weights, list[Curves]]]:
    return [trained(case) for case in cases]


def furthest(one: Weights, two: Weights) -> float:
    """The largest difference of two numbers, as a share of the largest of the tensor if that is large."""
    pairs = [(one[name].double(), two[name].double()) for name in one]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs)


def furthest_point(one: list[Curves], two: list[Curves]) -> float:
    """The largest difference of two numbers of the curves, as a share of them if they are large."""
    assert [list(curves) for curves in one] == [list(curves) for curves in two]
    pairs = [
        pair
        for a, b in zip(one, two, strict=True)
        for name in a
        if not name.startswith("note/")  # of each share
        for pair in zip(a[name], b[name], strict=True)
    ]
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)


def equal(cases: list[Case]) -> list[dict[str, float]]:
    """How far two processes end from one, in weights and curves, and from one another."""
    (alone,), (first, second) = (in_processes(n, all_trained, cases) for n in (1, 2))
    return [
        {
            "weights": furthest(a[0], b[0]),
            "curves": furthest_point(a[1], b[1]),
            "apart": max(furthest(b[0], c[0]), furthest_point(b[1], c[1])),
        }
        for a, b, c in zip(alone, first, second, strict=True)
    ]


def resumed(cases: list[Case]) -> list[str]:
    """The cases that end otherwise after a stop in each phase, in a process. Work folders are not shared."""
    with tempfile.TemporaryDirectory() as place:
        return [each for found in in_processes(2, _resumed, cases, Path(place)) for each in found]


def _resumed(cases: list[Case], place: Path) -> list[str]:
    state.ASK_EVERY = 0.0  # after each step
    return [f"{n}: {wrong}" for n, case in enumerate(cases) if (wrong := _differs(case, place / str(n)))]


def _differs(case: Case, place: Path) -> str:
    whole, other = Training(case), Training(case)
    rank = whole.accelerator.process_index
    for n in whole.phases:
        own, finished = (place / f"of {rank}" / f"{n}.{kind}" for kind in ("state", "finished"))
        curves = whole.fit(n, state_file=finished)
        if rank:  # what an earlier training has left on this machine
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place / "of 0" / finished.name, own)
        try:
            other.fit(n, state_file=own, **({"stop": (n % 2, 1)} if rank else {}))
            return f"phase {n} was not stopped"
        except KeyboardInterrupt:
            other = Training(case, seed=9)
        again = other.fit(n, state_file=own)
        if again != curves:
            return f"phase {n} has other curves"
        if wrong := moved(whole.weights(), other.weights()):
            return f"phase {n} has other {sorted(wrong)[:3]}"
    return ""


def disagreeing(scores: list[list[float]]) -> list[tuple[list[float], int]]:
    """What two processes with different scores on validation see, and their seeds while they train."""
    return in_processes(2, _disagreeing, scores)


def _disagreeing(scores: list[list[float]]) -> tuple[list[float], int]:
    training = Training(("kd", {}, "resnet8", {"epochs": 6, "patience": 2}))
    left = iter(scores[training.accelerator.process_index])
    curves = training.fit(0, validate=lambda net: {"val_accuracy": next(left), "val_loss": 0.0})
    return curves["val_accuracy"], torch.initial_seed()


def refused(of_second: dict[str, Any]) -> list[str]:
    """Why neither of two processes trains, if the second one has other things to train (or else no lock)."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        if not of_second:
            stack.enter_context(work_folder(Path(place, "of 0"), "distill", "kd", DEPENDS, is_main=True))
        return in_processes(2, _refused, of_second, Path(place))


def _refused(of_second: dict[str, Any], place: Path) -> str:
    rank = Accelerator(cpu=True).process_index
    depends = DEPENDS | (of_second if rank else {})
    try:
        with work_folder(place / f"of {rank}", "distill", "kd", depends, is_main=not rank):
            return "it trains"
    except InputError as error:
        return str(error)


def failing(rank: int) -> dict[str, Any]:
    """What two processes print, with which code they end and how many seconds later, if one has an error."""
    with tempfile.TemporaryDirectory() as place:
        codes = in_processes(2, _failing, rank, Path(place), check=False)
        seconds = time.time() - Path(place, "at").stat().st_mtime
        return {
            "codes": codes,
            "seconds": seconds,
            "said": [(Path(place) / name).read_text() for name in "01"],
        }


def _failing(rank: int, place: Path) -> None:
    """One process has an error in the second step."""
    accelerator = Accelerator(cpu=True)
    with (place / str(accelerator.process_index)).open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    training = Training(("kd", {}, "resnet8", {"epochs": 9}))
    net, steps = training.world.student.net, list[int]()
    usual = net.forward

    def broken(images: Tensor) -> Tensor:
        steps.append(1)
        if accelerator.process_index == rank and len(steps) == 2:
            (place / "at").touch()
            raise InputError("train.lr: that was too much. Lower it.")
        logits: Tensor = usual(images)
        return logits

    net.forward = broken

    def stage() -> None:
        with work_folder(place, "distill", "kd", DEPENDS, is_main=not accelerator.process_index):
            training.fit(0)

    command(stage, arguments=[])


STAGES: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.3, "test": 0.1},
    "protocol": {},
    "augment": {"views": 2},
    "train": {"epochs": 2, "batch_size": 8, "lr": 0.01, "optimizer": "sgd", "sync_bn": True},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 3}, "min_accuracy": 0.0}},
    "runs": {"rkd": {"teacher": "big", "student": "small", "method": {"name": "rkd"}, "seeds": [0]}},
}


def staged(images: int) -> list[dict[str, Any]]:
    """What one process and each of two get from `pretrain` and `distill`, with work folders of their own."""
    with tempfile.TemporaryDirectory() as place:
        SmallRuns(Path(place), STAGES, images=images)
        return [each for count in (1, 2) for each in in_processes(count, _staged, Path(place), count)]


def _staged(place: Path, count: int) -> dict[str, Any]:
    params, rank, teacher = load_params(place / "params.yaml"), os.environ.get("RANK", "0"), place / "big"
    own, shared, run = place / f"{count} {rank}", place / f"{count}", params.run("rkd")
    common: dict[str, Any] = {"data": place / "data", "work": own, "code": "c" * 64, "on_point": silent}
    if count == 1:
        train_teacher(params.teacher_run("big"), out=teacher, **common)
    shown: list[int] = []
    usual = Context._validation_images

    def noted(*arguments: Any) -> Tensor:
        images: Tensor = usual(*arguments)
        shown.append(len(images))
        return images

    Context._validation_images = noted  # type: ignore[assignment,method-assign]
    pretrain(run, teacher=teacher, out=shared / "initial", **common)
    processes.of_each(None)  # a stage is over when all processes are
    result = distill(run, teacher=teacher, initial=shared / "initial", out=shared / "out", **common)
    (curves,) = result.curves.values()
    left = sorted(path.name for path in own.rglob("*") if path.name in ("lock", "distill.state"))
    return {"metrics": result.metrics, "loss": curves["loss"], "validated": sum(shown), "left": left}


def warm_up() -> None:
    """A training imports much when it begins, and so each child would."""
    Training(("kd", {}, "staged", {"epochs": 1})).fit(0)
    for each in (AcceleratorState, GradientState, PartialState):
        each._reset_state()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    asked = json.loads(sys.stdin.read())
    found = {name: globals()[name.split()[0]](argument) for name, argument in asked.items()}
    Path(sys.argv[1]).write_text(json.dumps(found))
