"""The one loop: a phase's loss, over batches, into weights. It knows no method's name and no network's."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pipeline import checkpoint
from pipeline.inputs import InputError, Settings
from pipeline.meters import Means, Shares, gradient_shares
from pipeline.methods.base import Method, Phase
from pipeline.taps import Step, Tapped

if TYPE_CHECKING:
    from pipeline.data.batches import Batches

Curves = dict[str, list[float]]  # column -> one value a point
SAVE_EVERY = 20.0  # seconds between two saves of the state


class TrainConfig(Settings):
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1, description="of sgd, which is Nesterov's")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["constant", "step", "cosine", "onecycle"] = "cosine"
    milestones: tuple[float, ...] = Field((0.625, 0.75, 0.875), description="of step: shares of the epochs")
    gamma: float = Field(0.1, gt=0, le=1, description="of step: what the rate is multiplied by at a milestone")
    accumulate: int = Field(1, ge=1, description="parts a batch is cut into, one after the other, where memory is short")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights that are validated and kept instead; 0: none")
    amp: Literal["no", "bf16", "fp16"] = Field("no", description="precision of the networks; losses stay in float32")
    points: int = Field(100, ge=1, description="how often, at most, a phase is validated and its curves get a point")

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        match self.optimizer:
            case "sgd":
                return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=True)
            case "adam":
                return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
            case "adamw":
                return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)

    def scheduler(self, optimiser: torch.optim.Optimizer, steps_per_epoch: int) -> lr_scheduler.LRScheduler:
        """Stepped once a batch."""
        steps = self.epochs * steps_per_epoch
        match self.schedule:
            case "constant":
                return lr_scheduler.ConstantLR(optimiser, factor=1.0)
            case "step":
                return lr_scheduler.MultiStepLR(optimiser, [round(share * steps) for share in self.milestones], self.gamma)
            case "cosine":
                return lr_scheduler.CosineAnnealingLR(optimiser, steps)
            case "onecycle":
                return lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=steps)


def fit(
    phase: Phase,
    batches: "Batches",
    cfg: TrainConfig,
    *,
    student: Tapped,
    teacher: Tapped | None,
    method: Method,
    accelerator: Accelerator,
    seed: int,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    reached: Callable[[Curves], None] | None = None,
    state_file: Path | None = None,
    label: str = "",
) -> Curves:
    """Train what the phase trains; the student ends with its best weights on validation, or its last ones without `validate`.

    `reached` is told the curves so far at each point. With a `state_file`, a phase that was stopped goes on where it was and ends with
    the same weights.
    """
    torch.manual_seed(seed)
    parameters = set_motion(phase, student, method)
    optimiser = cfg.optimiser(parameters)
    schedule = cfg.scheduler(optimiser, len(batches))
    scaler = torch.amp.GradScaler(enabled=cfg.amp == "fp16" and accelerator.device.type == "cuda")
    average = AveragedModel(student.net, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema), use_buffers=True) if cfg.ema else None
    means, shares, started = Means(), Shares(phase.name), time.perf_counter()
    state = State(student.net, method, optimiser, schedule, scaler, average, shares)
    state.load(state_file)
    every = -(-cfg.epochs // cfg.points)
    quiet = True if not accelerator.is_main_process else None  # None: silent unless a person looks on
    bar = tqdm(total=cfg.epochs * len(batches), initial=state.epoch * len(batches), desc=label, disable=quiet, leave=False)

    for epoch in range(state.epoch, cfg.epochs):
        for n, batch in enumerate(batches.epoch(epoch)):
            optimiser.zero_grad(set_to_none=True)
            for part in batch.split(cfg.accumulate):
                progress = (epoch + n / len(batches)) / cfg.epochs
                autocast = partial(_autocast, cfg.amp, accelerator.device.type)
                step = Step(part.images, part.labels, part.index, student, teacher, epoch, progress, autocast)
                loss = phase.loss(step)
                if not loss:
                    raise InputError(
                        f"Phase {phase.name} has nothing to learn from: raise method.ce_weight, kd_weight or term_weight above 0."
                    )
                total = torch.stack([term.weight * term.value for term in loss.values()]).sum()
                if looked_at(epoch * len(batches) + n):
                    shares.add(gradient_shares(loss, student.net))
                scaler.scale(total * part.share).backward()
                means.add(f"{phase.name}, epoch {epoch}, step {n}", loss, total, part.share, method.take_notes())
            _average_gradients(parameters, accelerator)
            scaler.unscale_(optimiser)
            method.after_backward(step, student)
            scaler.step(optimiser)
            scaler.update()
            schedule.step()
            if average is not None:
                average.update_parameters(student.net)
            bar.update()
        if (epoch + 1) % every and epoch + 1 < cfg.epochs:
            continue
        _average_buffers(student.net, accelerator)
        net = student.net if average is None else average.module
        point = {"epoch": epoch + 1, "lr": optimiser.param_groups[0]["lr"]} | means.take() | shares.take()
        if validate is not None:
            point |= validate(net)
            bar.set_postfix(val=f"{point['val_accuracy']:.1%}")
        point["seconds"] = time.perf_counter() - started
        state.reached(epoch + 1, point, net)
        if reached is not None:
            reached(state.curves)
        if accelerator.is_main_process and (epoch + 1 == cfg.epochs or state.due()):
            state.save(state_file)
    bar.close()
    student.net.load_state_dict(state.kept)
    return state.curves


def looked_at(step: int) -> bool:
    """Whether the terms' shares of the gradient are taken: often at first, since a phase may be short, then seldom, as each look is a
    backward pass a term (benchmarks/logging_cost.py)."""
    return step % (50 if step < 200 else 200) == 0


def set_motion(phase: Phase, student: Tapped, method: Method) -> list[nn.Parameter]:
    """Everything still but what the phase trains: no gradients, and eval mode so that buffers rest too."""
    for module in (student.net, method):
        module.requires_grad_(False).eval()
    for module in phase.trains:
        module.requires_grad_(True).train()
    return list(dict.fromkeys(p for module in phase.trains for p in module.parameters()))


@dataclass
class State:
    """All that a phase needs to go on: saved now and then, loaded once."""

    student: nn.Module
    method: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    average: nn.Module | None
    shares: Shares
    epoch: int = 0
    curves: Curves = field(default_factory=dict)
    score: tuple[float, ...] = ()
    kept: dict[str, Tensor] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    def reached(self, epoch: int, point: Mapping[str, float], net: nn.Module) -> None:
        """A point of the curves; the student is kept if it's the best on validation so far, or if nothing validates."""
        self.epoch = epoch
        earlier = len(next(iter(self.curves.values()), []))
        for name in [*self.curves, *(name for name in point if name not in self.curves)]:  # a term that isn't in the loss counts 0
            self.curves.setdefault(name, [0.0] * earlier).append(float(point.get(name, 0.0)))
        score = (point["val_accuracy"], -point["val_loss"]) if "val_accuracy" in point else (float(epoch),)
        if not self.kept or score > self.score:
            self.score = score
            self.kept = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    def _parts(self) -> dict[str, Any]:
        names = ("student", "method", "optimiser", "schedule", "scaler", "average")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def due(self) -> bool:
        return time.monotonic() - self.saved > SAVE_EVERY

    def save(self, file: Path | None) -> None:
        if file is None:
            return
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
        own = {
            "epoch": self.epoch,
            "curves": self.curves,
            "score": self.score,
            "kept": self.kept,
            "shares": self.shares.last,
            "random": random,
        }
        checkpoint.save_state(file, own | {"parts": {name: part.state_dict() for name, part in self._parts().items()}})
        self.saved = time.monotonic()

    def load(self, file: Path | None) -> None:
        saved = checkpoint.load_state(file) if file is not None else None
        if saved is None:
            return
        for name, part in self._parts().items():
            part.load_state_dict(saved["parts"][name])
        self.epoch, self.curves, self.score, self.kept = saved["epoch"], saved["curves"], saved["score"], saved["kept"]
        self.shares.last = saved["shares"]
        torch.set_rng_state(saved["random"]["cpu"])
        if saved["random"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])


def _autocast(amp: str, device: str) -> AbstractContextManager:
    return torch.autocast(device, dtype=torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "no")


def _average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Every process has the gradient of its share of the batch; all go on with the mean."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))


def _average_buffers(net: nn.Module, accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer, "mean"))
