"""The settings of one phase's training: how long, how fast, in which precision."""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.optim import lr_scheduler

from pipeline.data.order import ClassBalance
from pipeline.device import autocast, is_fused
from pipeline.records.selection import Select
from pipeline.settings import Settings

RISE = 0.3  # share of the steps in which the rate of onecycle rises if `warmup` is 0


class TrainConfig(Settings):
    """The settings of a phase.

    `class_balance` is for classes of unequal size. `sampler`: every class is shown equally often, so small
    classes are repeated and large ones shown in part. `weights`: every image is shown once, and its
    cross-entropy counts by the inverse of its class's frequency. Only cross-entropy on labels is weighted,
    not KD and not a method's own terms. Label smoothing spreads a part of each label, with the weight of that
    label. In an image that mixup or cutmix made, each share counts with the weight of its class.
    """

    RENAMED: ClassVar[dict[str, str]] = {"amp": "precision"}

    epochs: int = Field(100, ge=0, le=10**6, description="0 if `steps` says how long")
    steps: int = Field(
        0, ge=0, le=10**9, description="instead of epochs: how many batches; the last epoch is cut"
    )
    batch_size: int = Field(64, ge=2)
    unlabelled_share: float = Field(
        0.75,
        ge=0,
        lt=1,
        description="of each batch, if there are images without labels; 0: they are not seen",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0, le=100)
    pretrained_lr: float = Field(
        1.0, gt=0, le=1, description="factor of the rate for what comes from pretrained weights"
    )
    momentum: float = Field(0.9, gt=0, lt=1, description="Nesterov momentum of sgd")
    weight_decay: float = Field(5e-4, ge=0, le=10)
    decay: Literal["all", "weights"] = Field(
        "all",
        description="what decays; weights: tensors of two dimensions or more, so no norms and no biases",
    )
    schedule: Literal["constant", "step", "cosine", "onecycle"] = "cosine"
    warmup: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps in which the rate rises; 0: none (onecycle rises by itself: 0.3)",
    )
    floor: float = Field(
        0.0, ge=0, lt=1, description="of schedule cosine: the rate at the end, as a share of lr"
    )
    milestones: tuple[float, ...] = Field(
        (0.625, 0.75, 0.875), description="of schedule step: when the rate falls, as shares of the epochs"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="of schedule step: the rate's factor at a milestone")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread over all classes"
    )
    clip: float = Field(0.0, ge=0, description="largest norm of all gradients of a step; 0: none")
    class_balance: ClassBalance = Field(
        "none",
        description="of classes of unequal size: all shown equally often, or weighted in cross-entropy",
    )
    accumulate: int = Field(1, ge=1, description="parts into which a batch is split, to save memory")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is then validated and saved; 0: none",
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] = Field(
        "fp32", description="of the networks; losses stay in float32. auto: the fastest here, measured once"
    )
    channels_last: bool = Field(
        False, description="networks and images lie in memory channels last; precision auto chooses itself"
    )
    deterministic: bool = Field(
        False, description="only operations that give the same bits every time, also on a GPU"
    )
    sync_bn: bool = Field(
        False,
        description="with several processes: batch norm over the whole batch, not over the share of each",
    )
    points: int = Field(
        100, ge=1, description="largest number of validations, and so of points in the curves, in a phase"
    )
    select: Select = Field(
        "accuracy",
        description="what is best on validation: for the weights a phase ends with, patience and the export",
    )
    patience: int = Field(
        0, ge=0, description="epochs without a better validation after which the phase ends; 0: never"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, given: Any) -> Any:
        """Steps that are given stand for the default of epochs."""
        if not isinstance(given, dict) or not given.get("steps"):
            return given
        if given.get("epochs"):
            raise ValueError(
                f"epochs is {given['epochs']} and steps is {given['steps']}, but only one of them says how "
                "long to train. Leave the other one out, or set it to 0"
            )
        return given | {"epochs": 0}

    @model_validator(mode="after")
    def _chooses_once(self) -> "TrainConfig":
        if self.precision == "auto" and self.channels_last:
            raise ValueError(
                "precision is auto, which also chooses channels_last. Leave channels_last out, or name a "
                "precision"
            )
        return self

    @model_validator(mode="after")
    def _has_a_length(self) -> "TrainConfig":
        if not self.epochs and not self.steps:
            raise ValueError("epochs is 0, so nothing is trained. Set epochs or steps to 1 or more")
        return self

    @model_validator(mode="after")
    def _has_a_floor(self) -> "TrainConfig":
        if self.floor and self.schedule != "cosine":
            raise ValueError(
                f"floor is {self.floor:g}, but schedule {self.schedule} has none. Set schedule to cosine, or "
                "leave floor out"
            )
        return self

    @model_validator(mode="after")
    def _warm_before_it_falls(self) -> "TrainConfig":
        if self.schedule == "step" and self.warmup and min(self.milestones, default=1.0) < self.warmup:
            raise ValueError(
                f"warmup is {self.warmup}, but the rate falls before that, at {min(self.milestones)}. "
                "Lower warmup, or raise milestones"
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """The steps of the phase."""
        return self.steps or self.epochs * steps_per_epoch

    def build_optimizer(
        self,
        parameters: Iterable[nn.Parameter],
        pretrained: Iterable[nn.Parameter] = (),
        factors: Mapping[int, float] = MappingProxyType({}),
    ) -> torch.optim.Optimizer:
        """The rate of its first group is the full one; those that are `pretrained` have their own.

        `factors`, by the id of a parameter, multiply its rate.
        """
        parameters = list(parameters)
        groups = self._groups(parameters, {id(parameter) for parameter in pretrained}, factors)
        fused = is_fused(parameters, self.precision)
        match self.optimizer:
            case "sgd":
                return torch.optim.SGD(groups, self.lr, self.momentum, nesterov=True, fused=fused)
            case "adam":
                return torch.optim.Adam(groups, self.lr, fused=fused)
            case "adamw":
                return torch.optim.AdamW(groups, self.lr, fused=fused)

    def _groups(
        self, parameters: Iterable[nn.Parameter], pretrained: set[int], factors: Mapping[int, float]
    ) -> list[dict[str, Any]]:
        """The parameters by learning rate and weight decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {(self.lr, self.weight_decay): []}
        for parameter in parameters:
            rate = self.lr * (self.pretrained_lr if id(parameter) in pretrained else 1)
            rate *= factors.get(id(parameter), 1)
            decay = self.weight_decay if self.decay == "all" or parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": members, "lr": rate, "weight_decay": decay}
            for (rate, decay), members in groups.items()
        ]

    def build_scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
        """The learning rate's schedule over all steps. Call its `step()` once a batch."""
        rise = min(round(self.warmup * steps), steps - 1)
        if self.schedule == "onecycle" or not rise:
            return self._build_main(optimizer, steps, 0)
        warmup = lr_scheduler.LinearLR(optimizer, 1 / (rise + 1), total_iters=rise)
        return lr_scheduler.SequentialLR(
            optimizer, [warmup, self._build_main(optimizer, steps, rise)], [rise]
        )

    def _build_main(
        self, optimizer: torch.optim.Optimizer, steps: int, rise: int
    ) -> lr_scheduler.LRScheduler:
        """The schedule after the `rise` steps of the warmup."""
        match self.schedule:
            case "constant":
                return lr_scheduler.ConstantLR(optimizer, factor=1.0)
            case "step":
                milestones = [round(share * steps) - rise for share in self.milestones]
                return lr_scheduler.MultiStepLR(optimizer, milestones, self.gamma)
            case "cosine" if self.floor:
                return lr_scheduler.LambdaLR(
                    optimizer, partial(_cosine, floor=self.floor, steps=steps - rise)
                )
            case "cosine":
                return lr_scheduler.CosineAnnealingLR(optimizer, steps - rise)
            case "onecycle":
                rates, share = [group["lr"] for group in optimizer.param_groups], self.warmup or RISE
                share = 0.0 if share * steps == 1 else share  # to rise in one step is a division by zero
                return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=share)

    def clip_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_(parameters, self.clip)

    def autocast(self, device: str) -> AbstractContextManager[None]:
        return autocast(device, self.precision)


class TeacherTrainConfig(TrainConfig):
    """Of a teacher. With `epochs: 0` it is taken as it is."""

    part: Literal["all", "head"] = Field("all", description="what is trained; head: the classifier alone")

    @property
    def is_trained(self) -> bool:
        return bool(self.epochs or self.steps)

    @model_validator(mode="after")
    def _has_a_length(self) -> "TeacherTrainConfig":
        return self


def _cosine(step: int, *, floor: float, steps: int) -> float:
    """The factor of the rate at a step: from 1 to `floor`."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / steps)) / 2


def merged(common: TrainConfig, own: dict[str, Any]) -> dict[str, Any]:
    """The common settings, replaced by a phase's own; its epochs or steps replace both of the common ones."""
    length = {"epochs": 0, "steps": 0} if own.get("epochs") or own.get("steps") else {}
    return common.model_dump() | length | own
