"""What the steps of gpu_check share: clocks, what waits for the device, and a small world to train in."""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline import methods, nets
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batches
from pipeline.data.protocol import Subset
from pipeline.device import computing, laid_out
from pipeline.functional import Input, normalise
from pipeline.methods import Method
from pipeline.methods._combined import build_method
from pipeline.records.record import Curves
from pipeline.taps.answer import Answer
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import fit, set_trainable
from pipeline.training.recipe import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
OURS = ("pipeline", "stages", "experiments")
CLASSES, MEAN, STD = 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RECIPE = TrainConfig(epochs=2, optimizer="sgd", lr=0.001)


class StoppedError(Exception):
    """Ends a training in its second epoch, as a machine that stops would."""


@dataclass
class Check:
    device: torch.device
    least: float  # seconds that a measurement of speed lasts
    peak: dict[str, float] = field(default_factory=dict)  # FLOP/s by precision

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def seconds(self, work: Callable[[], object], count: int = 1) -> float:
        """Of one call, mean over `count` calls."""
        wait = torch.get_device_module(self.device).synchronize
        wait()
        start = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        return (time.perf_counter() - start) / count

    def typical(self, work: Callable[[], object]) -> float:
        """The same, mean over as many calls as fill `least`. The first three calls do not count."""
        self.seconds(work, 2)
        return self.seconds(work, max(1, min(1000, round(self.least / self.seconds(work)))))

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """How often each line of our code waits for the device."""
        found: Counter[str] = Counter()

        def note(message: Warning | str, *_: object, **__: object) -> None:
            if "synchronizing" in str(message):
                found[place(traceback.extract_stack()[:-1])] += 1

        with warnings.catch_warnings(), patch("warnings.showwarning", note):
            warnings.simplefilter("always")
            if self.cuda:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                if self.cuda:
                    torch.cuda.set_sync_debug_mode("default")


class World:
    """Striped pictures and two networks on the device, put together as the training stages do it."""

    def __init__(
        self,
        check: Check,
        student: str,
        teacher: str,
        images: int,
        batch: int,
        size: int = 32,
        *,
        seed: int = 0,
    ) -> None:
        self.check, self.batch = check, batch
        self.pixels, self.labels = pictures(images, size)
        self.images = normalise(torch.as_tensor(self.pixels[:batch]).to(check.device), MEAN, STD)
        self.targets = torch.as_tensor(self.labels[:batch]).to(check.device)
        self.index = torch.arange(batch, device=check.device)
        networks = network(teacher, seed=-1).requires_grad_(False).eval(), network(student, seed=seed)
        self.teacher, self.student = (Tapped(net.to(check.device), self.images[:2]) for net in networks)

    def method(self, name: str) -> Method[Any]:
        cfg = methods.load(name).Config(name=name)
        with in_eval_mode(self.student.net):
            probe = Step(self.images[:4], self.targets[:4], self.index[:4], self.student, self.teacher)
            return build_method(cfg, None, probe, torch.as_tensor(self.labels)).to(self.check.device)

    def computing(self, cfg: TrainConfig) -> AbstractContextManager[None]:
        """As the training loop computes with these settings."""
        nets = (self.student.net, self.teacher.net)
        return computing(
            nets, cfg.precision, channels_last=cfg.channels_last, deterministic=cfg.deterministic
        )

    def stepper(
        self, method: Method[Any], phase_number: int, cfg: TrainConfig = RECIPE
    ) -> Callable[[], Tensor]:
        """A function that makes one training step, always on the same batch, and returns its loss."""
        phase = method.phases(self.student)[phase_number]
        optimizer = cfg.build_optimizer(set_trainable(phase, self.student, method))
        autocast = partial(cfg.autocast, self.check.device.type)
        images = laid_out(self.images, channels_last=cfg.channels_last)

        made = count()

        def make_step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            step = Step(images.detach(), self.targets, self.index, self.student, self.teacher)
            step.autocast, step.starts_epoch = autocast, next(made) == 0
            loss = torch.stack([term.weight * term.value for term in phase.loss(step).values()]).sum()
            torch.autograd.backward(loss)
            method.after_backward(step, self.student)
            optimizer.step()
            return loss.detach()

        return make_step

    def compiled(self, make_step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The same step of ce or kd with both networks compiled, on a GPU in CUDA graphs."""
        options: dict[str, Any] = {"mode": "reduce-overhead"} if self.check.cuda else {"backend": "eager"}
        torch._dynamo.reset()
        self.student, self.teacher = LogitsOnly(self.student), LogitsOnly(self.teacher)
        for net in (self.student.net, self.teacher.net):
            net.compile(dynamic=False, **options)

        def make_compiled_step() -> Tensor:
            # the tensors of the last step are no longer read
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return make_step()

        return make_compiled_step

    def fit(
        self, method: Method[Any], phase_number: int, cfg: TrainConfig, folder: Path, *, stop: bool = False
    ) -> Curves:
        """The training loop. With `stop` it ends in the second epoch; the state of the first is saved."""
        phase = method.phases(self.student)[phase_number]

        def stop_in_the_second(curves: Curves) -> None:
            if stop and len(curves["epoch"]) == 2:
                raise StoppedError

        options: dict[str, Any] = {"accelerator": Accelerator(cpu=not self.check.cuda), "seed": 0}
        batches = batches_of(self.check, self.pixels, self.labels, self.batch)
        with patch("pipeline.training.state.SAVE_EVERY", 0.0):
            return fit(
                phase,
                batches,
                cfg,
                student=self.student,
                teacher=self.teacher,
                method=method,
                on_point=stop_in_the_second,
                state_file=folder / f"{phase.name}.state",
                **options,
            )


class LogitsOnly(Tapped):
    """A network without hooks: torch 2.11 loses what they catch when it compiles a network in place."""

    def __init__(self, tapped: Tapped) -> None:
        tapped.close()
        self.net = tapped.net

    def __call__(self, images: Tensor) -> Answer:
        return Answer(self.net(images).float(), {}, torch.empty(0), {})


def network(name: str, *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nets.build(name, CLASSES)


def pictures(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy uint8 images of stripes; the period of the stripes is the class."""
    random, labels = np.random.default_rng(0), np.arange(count) % CLASSES
    angle = np.arange(size) * np.pi / (1 + labels[:, None]) + random.uniform(0, 6, (count, 1))
    stripes = (100 + 60 * np.sin(angle)).astype(np.uint8)
    return random.integers(0, 90, (count, size, size, 3), dtype=np.uint8) + stripes[:, None, :, None], labels


def batches_of(check: Check, images: np.ndarray, labels: np.ndarray, batch: int) -> Batches:
    input = Input(images.shape[1], MEAN, STD)
    options: dict[str, Any] = {
        "mean": MEAN,
        "input": input,
        "augment": AugmentConfig(),
        "device": check.device,
    }
    return Batches(images, Subset(np.arange(len(labels)), labels), batch_size=batch, seed=0, **options)


def place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of our own code."""
    folders = tuple(f"{ROOT / folder}/" for folder in OURS)
    own = [frame for frame in frames if frame.filename.startswith(folders)]
    if not own:
        return "not in our code"
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} {own[-1].line}"
