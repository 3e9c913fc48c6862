"""The settings of one phase's training: how long, how fast, in which precision."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import lr_scheduler

from pipeline.settings import Settings


class TrainConfig(Settings):
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1, description="Nesterov momentum of sgd")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["constant", "step", "cosine", "onecycle"] = "cosine"
    milestones: tuple[float, ...] = Field(
        (0.625, 0.75, 0.875), description="of schedule step: when the rate falls, as shares of the epochs"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="of schedule step: the rate's factor at a milestone")
    accumulate: int = Field(1, ge=1, description="parts into which a batch is split, to save memory")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is then validated and saved; 0: none",
    )
    amp: Literal["no", "bf16", "fp16"] = Field(
        "no", description="precision of the networks; losses stay in float32"
    )
    points: int = Field(
        100, ge=1, description="largest number of validations, and so of points in the curves, in a phase"
    )

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        match self.optimizer:
            case "sgd":
                return torch.optim.SGD(
                    parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=True
                )
            case "adam":
                return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
            case "adamw":
                return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)

    def build_scheduler(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> lr_scheduler.LRScheduler:
        """The learning rate's schedule. Call its `step()` once a batch."""
        steps = self.epochs * steps_per_epoch
        match self.schedule:
            case "constant":
                return lr_scheduler.ConstantLR(optimizer, factor=1.0)
            case "step":
                milestones = [round(share * steps) for share in self.milestones]
                return lr_scheduler.MultiStepLR(optimizer, milestones, self.gamma)
            case "cosine":
                return lr_scheduler.CosineAnnealingLR(optimizer, steps)
            case "onecycle":
                return lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)

    def autocast(self, device: str) -> AbstractContextManager[None]:
        dtype = torch.float16 if self.amp == "fp16" else torch.bfloat16
        return torch.autocast(device, dtype=dtype, enabled=self.amp != "no")
