"""All that a phase needs to continue after a stop: saved from time to time, loaded once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from pipeline.checkpoint import load_state, save_state
from pipeline.records.record import Curves
from pipeline.records.selection import Select, rank
from pipeline.training.monitor import Shares

SAVE_EVERY = 20.0  # seconds between two saves


@dataclass
class State:
    student: nn.Module
    method: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    average: nn.Module | None
    shares: Shares
    epochs: int  # of the whole phase
    patience: int  # epochs without better weights after which it ends; 0: it does not
    select: Select = "accuracy"  # what better is
    epoch: int = 0
    curves: Curves = field(default_factory=dict)
    score: tuple[float, ...] = ()  # of the best weights
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)  # the student's weights with which the phase ends
    last_save: float = field(default_factory=time.monotonic)

    def add_point(self, epoch: int, point: Mapping[str, float], net: nn.Module) -> None:
        """Add a point to the curves, and store the weights of `net` if they are the best so far.

        Without validation the latest weights are the best.
        """
        self.epoch = epoch
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
        impatient = 0 < self.patience <= self.epoch - self.best_epoch
        return self.epoch == self.epochs or impatient

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.last_save > SAVE_EVERY

    def save(self, file: Path | None) -> None:
        """Write everything to `file`; without one, nothing is saved."""
        if file is None:
            return
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        state = {
            "epoch": self.epoch,
            "curves": self.curves,
            "score": self.score,
            "best_epoch": self.best_epoch,
            "best": self.best,
            "shares": self.shares.last,
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
        }
        save_state(file, state)
        self.last_save = time.monotonic()

    def load(self, file: Path | None) -> None:
        """Continue from what `save` wrote, if there is something usable."""
        saved = load_state(file) if file is not None else None
        if saved is None:
            return
        for name, part in self._parts().items():
            part.load_state_dict(saved["parts"][name])
        for name in ("epoch", "curves", "score", "best_epoch", "best"):
            setattr(self, name, saved[name])
        self.shares.last = saved["shares"]
        torch.set_rng_state(saved["random"]["cpu"])
        if saved["random"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])

    def _parts(self) -> dict[str, Any]:
        names = ("student", "method", "optimizer", "schedule", "scaler", "average")
        return {name: part for name in names if (part := getattr(self, name)) is not None}
