"""What a training step of each method costs, compared with the floor.

    python -m experiments.method_cost [METHOD ...] [--phases all] [--write FILE]

The floor is a forward pass of the teacher, a forward and a backward pass of the student, and a step of the
optimizer. Measured is the CPU time of a process with one thread. Each method has a process of its own, as
when it trains, where its phases and the floor take turns. In a round each of them makes one step on the same
batch, and a ratio is that of two steps of the same round. So a machine that slows down or is shared affects
both alike. Each has its own copy of the same student. The data are noise, since time does not depend on them.

The allocator keeps memory that is freed. If it gives memory back and asks for it again, this costs up to a
fifth of a step, sometimes for the floor and sometimes for a method.
"""

import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from experiments._script import parser_of, print_table, quartiles
from pipeline import methods, nets
from pipeline.device import keep_memory
from pipeline.export import machine
from pipeline.methods import Method
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import set_trainable
from pipeline.training.recipe import TrainConfig

Variant = Callable[[], object]  # makes one training step
RECIPE = TrainConfig(optimizer="sgd", lr=0.01)


@dataclass(frozen=True)
class Setup:
    teacher: str = "resnet32x4"
    student: str = "resnet8x4"
    size: int = 32
    channels: int = 3
    classes: int = 100
    batch_size: int = 64
    examples: int = 50_000  # training images, for methods that remember each of them


class Cost(NamedTuple):
    method: str
    phase: str
    milliseconds: float  # median
    ratios: tuple[float, ...]  # one a round


class World:
    """The batch, the teacher and the student that every variant starts from."""

    def __init__(self, setup: Setup) -> None:
        torch.manual_seed(0)
        self.images = torch.randn(setup.batch_size, setup.channels, setup.size, setup.size)
        self.all_labels = torch.randint(setup.classes, (setup.examples,))
        self.index = torch.randperm(setup.examples)[: setup.batch_size]
        self.labels = self.all_labels[self.index]
        self.student, teacher = (
            nets.build(name, setup.classes, setup.channels) for name in (setup.student, setup.teacher)
        )
        self.teacher = teacher.requires_grad_(False).eval()

    def floor(self) -> Variant:
        student = copy.deepcopy(self.student).train()
        optimizer = RECIPE.build_optimizer(student.parameters())

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                self.teacher(self.images)
            torch.autograd.backward(F.cross_entropy(student(self.images), self.labels))
            optimizer.step()

        return step

    def phases(self, name: str, *, earlier: bool = False) -> dict[str, Variant]:
        """The last phase of a method, or all of them, each with networks and a method of its own."""
        method, student, _ = self.method(name)
        count = len(method.phases(student))
        return dict(self._phase(name, n) for n in range(0 if earlier else count - 1, count))

    def method(self, name: str) -> tuple[Method[Any], Tapped, Tapped]:
        """The method with its default settings, and copies of both networks, since a Tapped adds hooks."""
        student, teacher = (
            Tapped(copy.deepcopy(net), self.images[:2]) for net in (self.student, self.teacher)
        )
        student.net.eval()
        cls = methods.load(name)
        with torch.no_grad():
            probe = Step(self.images[:4], self.labels[:4], self.index[:4], student, teacher)
            return cls(cls.Config(name=name), probe, self.all_labels), student, teacher

    def _phase(self, name: str, number: int) -> tuple[str, Variant]:
        method, student, teacher = self.method(name)
        phase = method.phases(student)[number]
        optimizer = RECIPE.build_optimizer(set_trainable(phase, student, method))

        made = count()

        def make_step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            step = Step(self.images.detach(), self.labels, self.index, student, teacher)
            step.starts_epoch = next(made) == 0
            total = torch.stack([term.weight * term.value for term in phase.loss(step).values()]).sum()
            torch.autograd.backward(total)
            method.after_backward(step, student)
            optimizer.step()
            return total

        return phase.name, make_step


def measure(names: Sequence[str], setup: Setup, *, rounds: int, all_phases: bool) -> list[Cost]:
    floor, costs = [], []
    context = multiprocessing.get_context("spawn")
    for name in tqdm(names, desc="methods", disable=None, leave=False):
        with context.Pool(1) as pool:
            seconds = pool.apply(_seconds, (name, setup, rounds, all_phases))
        beside = seconds.pop("")
        floor += beside
        costs += [
            Cost(
                name,
                phase,
                1000 * statistics.median(taken),
                tuple(t / f for t, f in zip(taken, beside, strict=True)),
            )
            for phase, taken in seconds.items()
        ]
    return [Cost("floor", "", 1000 * statistics.median(floor), (1.0,) * len(floor)), *costs]


def _seconds(name: str, setup: Setup, rounds: int, all_phases: bool) -> dict[str, list[float]]:
    """Seconds of each round, for the floor (named "") and for the phases of one method."""
    torch.set_num_threads(1)
    keep_memory()
    world = World(setup)
    variants = {"": world.floor(), **world.phases(name, earlier=all_phases)}
    for step in variants.values():  # to warm the caches and the state of the optimizer
        step()
    seconds: dict[str, list[float]] = {phase: [] for phase in variants}
    for n in range(rounds):
        order = list(variants)
        for phase in order[n % len(order) :] + order[: n % len(order)]:  # none always comes first
            start = time.process_time()
            variants[phase]()
            seconds[phase].append(time.process_time() - start)
    return seconds


def table(costs: Sequence[Cost], setup: Setup) -> str:
    """Markdown, with the quartiles over the rounds."""
    lines = [
        "CPU time of a training step over the floor: "
        f"{setup.teacher} -> {setup.student}, {setup.size}x{setup.size}, batch {setup.batch_size}, one "
        f"thread. torch {torch.__version__}, {machine.cpu()['model']}.",
        "",
        "| method | phase | median ratio | quartiles | n | ms a step |",
        "|---|---|--:|:-:|--:|--:|",
    ]
    for cost in costs:
        low, middle, high = quartiles(cost.ratios)
        lines.append(
            f"| {cost.method} | {cost.phase} | {middle:.2f} | {low:.2f}-{high:.2f} | {len(cost.ratios)} "
            f"| {cost.milliseconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    default = Setup()
    parser = parser_of("method_cost", __doc__)
    parser.add_argument("methods", nargs="*", help="all of them if none is named")
    parser.add_argument("--phases", choices=("last", "all"), default="last")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--teacher", default=default.teacher)
    parser.add_argument("--student", default=default.student)
    parser.add_argument("--size", type=int, default=default.size)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    setup = Setup(teacher=given.teacher, student=given.student, size=given.size, batch_size=given.batch_size)
    costs = measure(
        given.methods or methods.names(), setup, rounds=given.rounds, all_phases=given.phases == "all"
    )
    print_table(table(costs, setup), given.write)


if __name__ == "__main__":
    main()
