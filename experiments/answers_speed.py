"""What an epoch costs with the teacher live, and with its stored answers (`augment.views`).

    python -m experiments.answers_speed [METHOD ... | all] [--images 192] [--rounds 5] [--write FILE]

For each method four trainings take turns, batch by batch, with the same images in the same order, and their
CPU time in one thread is added up over an epoch, with the views of the images and the optimizer:

- live: the teacher runs
- stored: its answers are read from `.work/answers`
- terms: its answers lie ready in memory, so this is the student and the method's own terms
- alone: the student with cross-entropy

A ratio is that of two epochs of the same round. The files were written just before, so they are read from
the system's memory, not from a disk. The last line adds up a comparison of these methods: several seeds, and
the making of the answers once. `all` names every method; some cannot read stored answers, and run live.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from experiments._script import parser_of, print_table, with_quartiles
from pipeline import methods, nets
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batch
from pipeline.data.protocol import ProtocolConfig
from pipeline.data.store import Manifest, Store
from pipeline.device import keep_memory
from pipeline.export import machine
from pipeline.runs.answers import stored_answers
from pipeline.runs.context import Context
from pipeline.taps.answer import Answer
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import set_trainable, step_of
from pipeline.training.recipe import TrainConfig

TEACHER, STUDENT, SIZE, CLASSES, BATCH = "resnet32x4", "resnet8x4", 32, 100, 64
RECIPE = TrainConfig(epochs=2, batch_size=BATCH, optimizer="sgd", lr=0.01)
VARIANTS = ("live", "stored", "terms", "alone")
MADE = 2  # views of each image that are stored here
SEEDS, EPOCHS, VIEWS = 3, 64, 16  # of the comparison that is added up


class Cost(NamedTuple):
    """CPU seconds of an epoch in each round, by variant; and of the making of answers that were not there."""

    method: str
    read: list[str] | None  # None: the teacher runs live
    seconds: dict[str, list[float]]
    making: float

    def median(self, variant: str) -> float:
        return statistics.median(self.seconds[variant])


def store_of(images: int) -> Store:
    """Pictures of noise: time does not depend on them."""
    random = np.random.default_rng(0)
    count = images + CLASSES
    manifest: Any = {
        "size": SIZE,
        "channels": 3,
        "classes": [str(n) for n in range(CLASSES)],
        "mean": [0.5] * 3,
        "std": [0.3] * 3,
        "splits": {"train": images, "val": CLASSES, "test": 0},
        "unlabelled": 0,
        "content": f"{images} pictures of noise",
    }
    pixels = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return Store(Path(), pixels, np.arange(count) % CLASSES, cast(Manifest, manifest))


class Training:
    """The last phase of a method, step by step, with a student of its own."""

    def __init__(self, context: Context, name: str, student: Tapped, teacher: Tapped) -> None:
        self.teacher = teacher
        self.student = context.tap(copy.deepcopy(student.net), {}, student.input)
        cfg = methods.load(name).Config(name=name)
        self.method = context.build_method(cfg, self.student, teacher)
        self.phase = self.method.phases(self.student)[-1]
        self.batches = context.batches(RECIPE, 0, self.student, teacher)
        self.optimizer = RECIPE.build_optimizer(set_trainable(self.phase, self.student, self.method))

    def store(self, context: Context, folder: Path) -> list[str] | None:
        """Read the teacher's answers from files from now on; what is read, or None if it runs live."""
        self.batches.answers, facts = stored_answers(
            context,
            self.phase,
            self.batches,
            RECIPE,
            student=self.student,
            teacher=self.teacher,
            method=self.method,
            folder=folder,
            label=self.method.cfg.name,
        )
        return None if "live" in facts else facts["read"]

    def step(self, batch: Batch, answer: Answer | None = None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        step = step_of(batch, RECIPE, self.student, self.teacher)
        if answer is not None:
            step.__dict__["teacher"] = answer  # fills the cached property
        total = torch.stack([term.weight * term.value for term in self.phase.loss(step).values()]).sum()
        torch.autograd.backward(total)
        self.method.after_backward(step, self.student)
        self.optimizer.step()


def measure(
    name: str, context: Context, student: Tapped, teacher: Tapped, *, rounds: int, folder: Path
) -> Cost:
    trainings = {
        variant: Training(context, "ce" if variant == "alone" else name, student, teacher)
        for variant in VARIANTS
    }
    begun = time.process_time()
    read = trainings["stored"].store(context, folder)
    making = time.process_time() - begun
    ready: list[Answer | None] = [
        None if read is None else _answer(teacher, batch) for batch in trainings["terms"].batches.epoch(0)
    ]
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for n in range(-1, rounds):
        spent = _epoch(trainings, ready)
        if n >= 0:  # the first one warms the caches and the state of the optimizer
            for variant, each in spent.items():
                seconds[variant].append(each)
    return Cost(name, read, seconds, making)


def _answer(teacher: Tapped, batch: Batch) -> Answer:
    with torch.no_grad():
        return teacher(batch.images)


def _epoch(trainings: dict[str, Training], ready: Sequence[Answer | None]) -> dict[str, float]:
    """One epoch of all trainings; each is first in its turn."""
    epochs = {variant: training.batches.epoch(0) for variant, training in trainings.items()}
    spent = dict.fromkeys(trainings, 0.0)
    for n, answer in enumerate(ready):
        start = n % len(VARIANTS)
        for variant in VARIANTS[start:] + VARIANTS[:start]:
            begun = time.process_time()
            trainings[variant].step(next(epochs[variant]), answer if variant == "terms" else None)
            spent[variant] += time.process_time() - begun
    return spent


def table(costs: Sequence[Cost], images: int) -> str:
    """Markdown: seconds of an epoch, and ratios with the quartiles over the rounds."""
    lines = [
        f"CPU time of an epoch: {TEACHER} -> {STUDENT}, {images} images of {SIZE} x {SIZE} pixels, batch "
        f"{BATCH}, one thread. torch {torch.__version__}, {machine.cpu()['model']}. Medians, and quartiles "
        "of the ratios.",
        "",
        "| method | read of the teacher | live, s | stored, s | live / stored | stored / terms "
        "| stored / alone | n |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for cost in costs:
        live, stored = cost.median("live"), cost.median("stored")
        ratios = (("live", "stored"), ("stored", "terms"), ("stored", "alone"))
        shown = " | ".join(_ratio(cost.seconds[one], cost.seconds[other]) for one, other in ratios)
        lines.append(
            f"| {cost.method} | {_read(cost)} | {live:.2f} | {stored:.2f} | {shown} "
            f"| {len(cost.seconds['live'])} |"
        )
    return "\n".join([*lines, "", _comparison(costs)]) + "\n"


def _read(cost: Cost) -> str:
    if cost.read is None:
        return "the teacher runs live"
    return ", ".join(cost.read) or "nothing"


def _comparison(costs: Sequence[Cost]) -> str:
    """A sentence on all methods together."""
    times, making = SEEDS * EPOCHS, sum(cost.making for cost in costs) * VIEWS / MADE
    reading = [cost for cost in costs if cost.read is not None]
    live = times * sum(cost.median("live") for cost in costs)
    saved = times * sum(cost.median("live") - cost.median("stored") for cost in reading) - making
    teacher = times * sum(cost.median("live") - cost.median("terms") for cost in reading)
    return (
        f"Last phases of {len(costs)} methods, {SEEDS} seeds of {EPOCHS} epochs, {VIEWS} views of each "
        f"image: {live:,.0f} s live; {live - saved:,.0f} s from stored answers, {making:,.0f} of them to "
        f"make these ({live / (live - saved):.2f} times cheaper). {saved / teacher:.0%} of the teacher's "
        f"{teacher:,.0f} s are gone, for the {len(reading)} methods that read them."
    )


def _ratio(ones: Sequence[float], others: Sequence[float]) -> str:
    return with_quartiles([one / other for one, other in zip(ones, others, strict=True)])


def run(names: Sequence[str], *, images: int, rounds: int) -> str:
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    context = Context.of_students(store_of(images), ProtocolConfig(), AugmentConfig(views=MADE, views_gb=1e3))
    student, teacher = (
        context.tap(nets.build(name, CLASSES, 3), {}, context.data_input) for name in (STUDENT, TEACHER)
    )
    teacher.net.requires_grad_(False).eval()
    costs = []
    with tempfile.TemporaryDirectory() as folder:  # one, so that parts that several read are made once
        for name in names:
            costs.append(measure(name, context, student, teacher, rounds=rounds, folder=Path(folder)))
            print(f"{name} is measured", file=sys.stderr, flush=True)
    return table(costs, images)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("answers_speed", __doc__)
    parser.add_argument("methods", nargs="*", default=["kd", "at", "semckd"])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    names = methods.names() if given.methods == ["all"] else given.methods
    print_table(run(names, images=given.images, rounds=given.rounds), given.write)


if __name__ == "__main__":
    main()
