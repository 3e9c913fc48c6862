"""All that a phase needs to continue after a stop, at any step: saved from time to time, loaded once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import lr_scheduler

from pipeline.checkpoint import load_state, save_state
from pipeline.methods import statistics
from pipeline.records.record import Curves
from pipeline.records.selection import Select, rank
from pipeline.taps import processes
from pipeline.training.monitor import Means, Shares
from pipeline.training.stop import Stop

SAVE_EVERY = 20.0  # seconds between two saves, at least
SAVE_SHARE = 0.02  # of the time, at most; if a save takes long, the next one is later
ASK_EVERY = 1.0  # seconds after which processes ask one another whether to save
PLAIN = ("epoch", "step", "last_point", "curves", "score", "best_epoch", "best", "seconds")


@dataclass
class State:
    student: nn.Module
    method: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    average: nn.Module | None
    means: Means
    shares: Shares
    accelerator: Accelerator
    random: torch.Generator | None  # that all processes have in common
    epochs: int  # of the whole phase
    patience: int  # epochs without better weights after which it ends; 0: it does not
    select: Select = "accuracy"  # what better is
    epoch: int = 0  # that is trained now
    step: int = 0  # of this epoch, the next one
    last_point: int = 0  # the epoch
    curves: Curves = field(default_factory=dict)
    score: tuple[float, ...] = ()  # of the best weights
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)  # the student's weights with which the phase ends
    begun: float = field(default_factory=time.perf_counter)
    last_save: float = field(default_factory=lambda: time.monotonic())
    save_seconds: float = 0.0  # of the last save
    asks: "Asks" = field(default_factory=lambda: Asks())

    @property
    def seconds(self) -> float:
        """How long the phase has been trained, without the time between a stop and its continuation."""
        return time.perf_counter() - self.begun

    def add_point(self, epoch: int, point: Mapping[str, float], net: nn.Module) -> None:
        """Add a point to the curves, and store the weights of `net` if they are the best so far.

        Without validation the latest weights are the best.
        """
        self.epoch = self.last_point = epoch
        self.step = 0
        earlier = len(next(iter(self.curves.values()), []))
        for name in [*self.curves, *(name for name in point if name not in self.curves)]:
            # a term that the loss does not have at this point counts as 0
            self.curves.setdefault(name, [0.0] * earlier).append(float(point.get(name, 0.0)))
        is_validated = any(name.startswith("val_") for name in point)
        score = rank(point, self.select) if is_validated else (float(epoch),)
        if not self.best or score > self.score:
            self.score, self.best_epoch = score, epoch
            self.best = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    @property
    def is_over(self) -> bool:
        """Whether the phase has reached its end, or its patience has."""
        impatient = 0 < self.patience <= self.last_point - self.best_epoch
        return self.last_point == self.epochs or impatient

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.last_save > max(SAVE_EVERY, self.save_seconds / SAVE_SHARE)

    def keep(self, file: Path | None, stop: Stop) -> None:
        """After a step or a point: save if it is time to. If a signal came, save and end the training.

        All processes do this after the same step.
        """
        asked, due = stop.asked, self.is_due()
        if self.accelerator.num_processes > 1:
            asked, due = self.asks.agreed(self.accelerator, asked, due)
        if file is not None and (asked or due or self.is_over):
            self.save(file)
        if asked:
            raise KeyboardInterrupt(asked)

    def save(self, file: Path) -> None:
        """Write everything to `file`."""
        begun = time.monotonic()
        of_processes = processes.of_each(self._own())
        if self.accelerator.is_main_process:
            state = {name: getattr(self, name) for name in PLAIN} | {
                "parts": {name: part.state_dict() for name, part in self._parts().items()},
                "of_processes": of_processes,
            }
            save_state(file, state)
        self.accelerator.wait_for_everyone()  # a process that ended early would make a launcher end them all
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - begun

    def load(self, file: Path | None) -> None:
        """Continue from what `save` wrote, if there is something usable.

        The main process says what it has, since the others may see another work folder.
        """
        is_here = file is not None and self.accelerator.is_main_process
        saved = processes.of_first(load_state(file) if file is not None and is_here else None)
        if saved is None:
            return
        for name, part in self._parts().items():
            part.load_state_dict(saved["parts"][name])
        for name in PLAIN[:-1]:
            setattr(self, name, saved[name])
        self.begun -= saved["seconds"]
        of_processes, rank = saved["of_processes"], self.accelerator.process_index
        if len(of_processes) == self.accelerator.num_processes:
            self._load_own(of_processes[rank])

    def _own(self) -> dict[str, Any]:
        """What each process has for itself, since it has seen other images than the others."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "statistics": [tensor.cpu() for tensor in self._statistics()],
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "common": None if self.random is None else self.random.get_state(),
            "means": self.means.as_sums(),
            "shares": {"measured": dict(self.shares.measured), "last": self.shares.last},
        }

    def _load_own(self, own: dict[str, Any]) -> None:
        for tensor, saved in zip(self._statistics(), own["statistics"], strict=True):
            tensor.copy_(saved)
        self.means.go_on(own["means"])
        self.shares.measured.update(own["shares"]["measured"])
        self.shares.last = own["shares"]["last"]
        torch.set_rng_state(own["random"]["cpu"])
        if own["random"]["cuda"]:
            torch.cuda.set_rng_state_all(own["random"]["cuda"])
        if self.random is not None:
            self.random.set_state(own["common"])

    def _statistics(self) -> list[Tensor]:
        parts = [part for part in self._parts().values() if isinstance(part, nn.Module)]
        return [tensor for part in parts for tensor in statistics(part)]

    def _parts(self) -> dict[str, Any]:
        names = ("student", "method", "optimizer", "schedule", "scaler", "average")
        return {name: part for name in names if (part := getattr(self, name)) is not None}


@dataclass
class Asks:
    """How processes agree on what to do after a step. They ask one another seldom: each time costs time."""

    every: int = 1  # steps from one time to the next
    left: int = 1
    last: float = field(default_factory=time.monotonic)

    def agreed(self, accelerator: Accelerator, asked: int, due: bool) -> tuple[int, bool]:
        """The signal that any process got, and whether the main process is to save."""
        self.left -= 1
        if self.left:
            return 0, False
        elapsed = max(1e-6, time.monotonic() - self.last)
        every = min(max(1, round(self.every * ASK_EVERY / elapsed)), 2 * self.every)
        said = accelerator.gather(torch.tensor([[asked, due, every]], device=accelerator.device))
        self.every = self.left = int(said[0, 2])
        self.last = time.monotonic()
        return int(said[:, 0].max()), bool(said[0, 1])
