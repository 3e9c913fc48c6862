"""Training steps a second: ours, and a loop in the way of public code, with the same networks and files.

    python -m experiments.step_speed [--images FOLDER] [--rounds 7] [--write FILE]

A teacher gives kd to a student. Four trainings take turns, a few steps each:

- public code: JPEG files in torchvision's ImageFolder and DataLoader, its transforms, the teacher under
  no_grad, cross-entropy and KD, SGD, and the accuracy of each batch for the log, in our own words
- ours, live: the loop of this project, and the teacher answers in every step
- ours, stored: the same, and the teacher's answers are read from `.work/answers` (`augment.views`)
- ours, fast: the same in the precision that `auto` chooses on this machine

Everything runs in one thread. CPU time is that of a whole step with its data, and so is the wall time, in
which other work on the machine counts. A large product of matrices takes its turn, too: it is the bound that
the share refers to. FOLDER has a folder of JPEG files for each class; without it they are made.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from experiments._script import parser_of, print_table, with_quartiles
from pipeline import methods, nets
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batch, Batches
from pipeline.data.prepare import prepare
from pipeline.data.protocol import ProtocolConfig
from pipeline.data.sources import DataConfig
from pipeline.device import keep_memory
from pipeline.export import machine
from pipeline.runs.answers import stored_answers
from pipeline.runs.context import Context
from pipeline.runs.precision import settled
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import fit
from pipeline.training.recipe import TrainConfig

TEACHER, STUDENT, SIZE, CLASSES, OF_CLASS, BATCH = "resnet32x4", "resnet8x4", 32, 100, 10, 64
WARM, STEPS = 1, 2  # of a turn: steps that do not count, and those that do
VIEWS, MOST, SIDE = 2, 256, 1024  # fixed views; images of ours; rows of the matrices of the bound
RECIPE = {"optimizer": "sgd", "lr": 0.05}
KD = {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
Turn = Callable[[], "Spent"]


@dataclass(frozen=True)
class Spent:
    """Seconds of one step."""

    cpu: float
    wall: float


@dataclass
class Measured:
    """A training, and what its steps took in each round."""

    name: str
    turn: Turn
    flops: float  # of a step
    spent: list[Spent] = field(default_factory=list)


class Clock:
    """From `start` to `stop` so many steps."""

    def start(self) -> None:
        self.begun = time.process_time(), time.perf_counter()

    def stop(self, steps: int) -> Spent:
        cpu, wall = self.begun
        return Spent((time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps)


class Clocked(Batches):
    """The same batches, in one turn of our loop."""

    def __init__(self, batches: Batches) -> None:
        vars(self).update(vars(batches))
        self.clock = Clock()

    def epoch(self, n: int, first: int = 0) -> Iterator[Batch]:
        batches = super().epoch(n, first)
        for step in range(WARM + STEPS):
            if step == WARM:
                self.clock.start()
            yield next(batches)
        self.spent = self.clock.stop(STEPS)  # the loop asks for one more


def save_pictures(folder: Path) -> None:
    """Noisy stripes as JPEG files, in a folder for each class."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"{label:03}").mkdir(parents=True)
        for n in range(OF_CLASS):
            angle = np.arange(SIZE) * (1 + label) / SIZE * np.pi + random.uniform(0, 6)
            wave = (100 + 60 * np.sin(angle)).astype(np.uint8)[:, None, None]
            picture = random.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8) + wave
            Image.fromarray(picture).save(folder / f"{label:03}" / f"{n:03}.jpg", quality=90)


def public_code(images: Path, student: nn.Module, teacher: nn.Module) -> Turn:
    """The loop of public distillation code, in our own words."""
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    shown = [v2.RandomCrop(SIZE, padding=SIZE // 8), v2.RandomHorizontalFlip()]
    as_floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    dataset = ImageFolder(str(images), v2.Compose([v2.Resize((SIZE, SIZE)), *shown, *as_floats]))
    loader: DataLoader[Any] = DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    log: list[tuple[float, float]] = []

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    def step(images: Tensor, labels: Tensor) -> None:
        logits = student(images)
        with torch.no_grad():
            wanted = teacher(images)
        tau = KD["temperature"]
        soft = F.log_softmax(logits / tau, 1), F.softmax(wanted / tau, 1)
        kd = F.kl_div(*soft, reduction="batchmean") * tau**2
        loss = KD["ce_weight"] * F.cross_entropy(logits, labels) + KD["kd_weight"] * kd
        log.append((loss.item(), (logits.argmax(1) == labels).float().mean().item()))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    endless = batches()
    student.train()

    def turn() -> Spent:
        clock = Clock()
        for n in range(WARM + STEPS):
            if n == WARM:
                clock.start()
            step(*next(endless))
        return clock.stop(STEPS)

    return turn


def ours(context: Context, student: nn.Module, teacher: Tapped, cfg: TrainConfig, folder: Path) -> Turn:
    """The project's own loop. With fixed views it reads the teacher's answers, which are made here."""
    own = context.tap(copy.deepcopy(student), {}, context.data_input)
    method = context.build_method(methods.load("kd").Config(name="kd", **KD), own, teacher)
    (phase,) = method.phases(own)
    batches = context.batches(cfg, 0, own, teacher)
    networks: dict[str, Any] = {"student": own, "teacher": teacher, "method": method}
    if context.augment.views:
        batches.answers, facts = stored_answers(
            context, phase, batches, cfg, **networks, folder=folder, label="kd"
        )
        assert batches.answers is not None, facts

    def turn() -> Spent:
        clocked = Clocked(batches)
        fit(phase, clocked, cfg, **networks, accelerator=context.accelerator, seed=0)
        return clocked.spent

    return turn


def trainings(images: Path, folder: Path) -> list[Measured]:
    data = folder / "data"
    data.mkdir()
    prepare(DataConfig(source="folder", root=str(images), size=SIZE), data)
    live = Context.of_students(data, ProtocolConfig(), AugmentConfig())
    protocol = ProtocolConfig(fraction=min(1.0, MOST / len(live.subset.rows)))
    live, stored = (Context.of_students(data, protocol, AugmentConfig(views=views)) for views in (0, VIEWS))
    torch.manual_seed(0)
    net, big = (nets.build(name, len(live.classes), 3) for name in (STUDENT, TEACHER))
    teacher = live.tap(big, {}, live.data_input)
    teacher.net.requires_grad_(False).eval()
    flops = _flops(copy.deepcopy(net).train()), _flops(copy.deepcopy(big).eval())
    plain, auto = (_recipe(precision) for precision in ("fp32", "auto"))
    student = stored.tap(copy.deepcopy(net), {}, stored.data_input)
    fast, choice = settled(stored, student, teacher, auto, work=folder)
    chosen = choice["precision"] + " channels_last" * choice["channels_last"]
    theirs = public_code(images, copy.deepcopy(net), big)
    return [
        Measured("public code", theirs, sum(flops)),
        Measured("ours, live", ours(live, net, teacher, plain, folder), sum(flops)),
        Measured("ours, stored", ours(stored, net, teacher, plain, folder), flops[0]),
        Measured(f"ours, fast ({chosen})", ours(stored, net, teacher, fast, folder), flops[0]),
    ]


def _recipe(precision: str) -> TrainConfig:
    """The loop is asked for one step more than a turn has, so that the clock stops after the last one."""
    given = {"steps": WARM + STEPS + 1, "batch_size": BATCH, "precision": precision}
    return TrainConfig.model_validate(RECIPE | given)


def _flops(net: nn.Module) -> float:
    """Of a batch: forward, and backward if the network is in training mode."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(net.training):
        logits = net(torch.zeros(BATCH, 3, SIZE, SIZE))
        if net.training:
            torch.autograd.backward(logits.sum())
    total: float = counter.get_total_flops()
    return total


def product() -> float:
    """FLOP/s of CPU time in a product of matrices."""
    a, b = torch.rand(2, SIDE, SIDE)
    begun = time.process_time()
    torch.mm(a, b)
    return 2 * SIDE**3 / (time.process_time() - begun)


def table(measured: Sequence[Measured], bounds: Sequence[float]) -> str:
    bound, public = statistics.median(bounds), measured[0]
    lines = [
        f"{machine.cpu()['model']}, one thread, torch {torch.__version__}: {TEACHER} teaches {STUDENT} with "
        f"kd, {SIZE} x {SIZE} pixels, batch {BATCH}. Medians of a step, and quartiles of the ratios in the "
        f"same round. A product of {SIDE} x {SIDE} matrices reaches {bound / 1e9:.1f} GFLOP/s here.",
        "",
        "| training | CPU, ms | wall, ms | steps a CPU second | times public code | share of product | n |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in measured:
        cpu, wall = (
            statistics.median(getattr(spent, clock) for spent in each.spent) for clock in ("cpu", "wall")
        )
        ratios = [a.cpu / b.cpu for a, b in zip(public.spent, each.spent, strict=True)]
        cells = [
            each.name,
            f"{1000 * cpu:,.0f}",
            f"{1000 * wall:,.0f}",
            f"{1 / cpu:.2f}",
            with_quartiles(ratios),
            f"{each.flops / cpu / bound:.0%}",
            str(len(each.spent)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(images: Path | None, rounds: int) -> str:
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        if images is None:
            images = Path(name) / "images"
            save_pictures(images)
        measured, bounds = trainings(images, Path(name)), list[float]()
        for n in tqdm(range(rounds), disable=None):
            first = n % len(measured)
            for each in measured[first:] + measured[:first]:
                each.spent.append(each.turn())
            bounds.append(product())
    return table(measured, bounds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("step_speed", __doc__)
    parser.add_argument("--images", type=Path, help="a folder of class folders, in place of made up pictures")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    print_table(run(given.images, given.rounds), given.write)


if __name__ == "__main__":
    main()
