"""The one training loop, for every phase of every method. It knows no method and no network by name."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.data.batches import Batch, Batches
from pipeline.device import computing, laid_out
from pipeline.methods import Loss, Method, Phase
from pipeline.records.record import Curves
from pipeline.records.ticker import Ticker
from pipeline.settings import InputError
from pipeline.taps import processes
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training.monitor import Means, Shares, gradient_shares
from pipeline.training.recipe import TrainConfig
from pipeline.training.state import State
from pipeline.training.stop import Stop
from pipeline.training.sync_bn import norms_of_all

Validate = Callable[[nn.Module], Mapping[str, float]]
Autocast = Callable[[], AbstractContextManager[object]]


def fit(
    phase: Phase,
    batches: Batches,
    cfg: TrainConfig,
    *,
    student: Tapped,
    teacher: Tapped | None,
    method: Method[Any],
    accelerator: Accelerator,
    seed: int,
    validate: Validate | None = None,
    on_point: Callable[[Curves], None] | None = None,
    state_file: Path | None = None,
    label: str = "",
) -> Curves:
    """Train what the phase trains, and return its curves.

    The student ends with its best weights on validation, or with its last ones without `validate`, which
    returns at least `val_accuracy`, `val_loss` and what `cfg.select` names, or `val_nearest_mean` alone.
    `on_point` gets the curves so far at each point. With a `state_file`, a phase that was stopped at any step
    continues from there, and ends with the same weights and curves. `epoch` in the curves has a fraction
    where `cfg.steps` cuts the last epoch.
    """
    torch.manual_seed(seed + processes.rank())  # of dropout, for example
    random = common_random(seed, accelerator)
    parameters = set_trainable(phase, student, method)
    per_epoch, steps = len(batches), cfg.total_steps(len(batches))
    epochs = -(-steps // per_epoch)
    factors = {id(p): factor for module, factor in phase.rates for p in module.parameters()}
    optimizer = cfg.build_optimizer(parameters, pretrained(student), factors)
    schedule = cfg.build_scheduler(optimizer, steps)
    scaler = torch.amp.GradScaler(enabled=cfg.precision == "fp16" and accelerator.device.type == "cuda")
    average = _averaged(student.net, cfg)
    means, shares = Means(), Shares(phase.name)
    parts = (student.net, method, optimizer, schedule, scaler, average, means, shares)
    state = State(*parts, accelerator, random, epochs, cfg.patience, cfg.select)
    state.load(state_file)
    autocast = partial(cfg.autocast, accelerator.device.type)
    epochs_per_point = -(-epochs // cfg.points)
    is_main, done = accelerator.is_main_process, state.epoch * per_epoch + state.step
    ticker = Ticker(label, steps, done=done, shown=is_main)

    with (
        _computing(cfg, student, teacher),
        Stop(shown=is_main) as stop,
        norms_of_all(phase.trains, wanted=cfg.sync_bn),
    ):
        for epoch in range(state.epoch, epochs):
            if state.is_over:
                break
            left = steps - epoch * per_epoch - state.step
            rest = islice(batches.epoch(epoch, state.step), left)
            for n, batch in enumerate(rest, start=state.step):
                place = f"{phase.name}, epoch {epoch}, step {n}"
                progress = (epoch + n / per_epoch) / (steps / per_epoch)
                optimizer.zero_grad(set_to_none=True)
                for k, part in enumerate(batch.split(cfg.accumulate)):
                    is_first = n == k == 0
                    step = step_of(part, cfg, student, teacher, epoch, progress, autocast, is_first, random)
                    loss = phase.loss(step)
                    total = _weighted_sum(loss, phase)
                    if shares_are_due(epoch * per_epoch + n):
                        shares.add(gradient_shares(loss, student.net, batch.share))
                    torch.autograd.backward(scaler.scale(total * part.share))
                    means.add(place, loss, total, part.share, method.take_notes())
                processes.average(p.grad for p in parameters if p.grad is not None)
                scaler.unscale_(optimizer)
                method.after_backward(step, student)
                means.add_notes(place, 1.0, method.take_notes())
                cfg.clip_gradients(parameters)  # last, as the method may have changed the gradients
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                if average is not None:
                    average.update_parameters(student.net)
                ticker.advance(images=len(batch.index) * accelerator.num_processes)
                state.step = n + 1
                state.keep(state_file, stop)
            if (epoch + 1) % epochs_per_point and epoch + 1 < epochs:
                state.epoch, state.step = epoch + 1, 0
                continue
            net = student.net if average is None else average.module
            _synchronise(method, student.net, net)
            trained = min(epoch + 1, steps / per_epoch)
            shown = round(trained * batches.images_per_epoch)
            point = (
                {"epoch": trained, "images": shown, "lr": optimizer.param_groups[0]["lr"]}
                | means.take()
                | shares.take()
            )
            if validate is not None:
                point |= processes.of_first(dict(validate(net)))  # all must end at one epoch
            point["seconds"] = state.seconds
            state.add_point(epoch + 1, point, net)
            ticker.tell(_facts(point, steps / per_epoch))
            if on_point is not None:
                on_point(state.curves)
            state.keep(state_file, stop)
    ticker.close()
    student.net.load_state_dict(state.best)
    return state.curves


def shares_are_due(step: int) -> bool:
    """Whether to measure each term's share of the gradient at this step.

    Each measurement costs one more backward pass for each term. It is frequent at first, since a phase may be
    short, and rare later (experiments/logging_cost.py measures the cost).
    """
    return step % (50 if step < 200 else 200) == 0


def set_trainable(phase: Phase, student: Tapped, method: Method[Any]) -> list[nn.Parameter]:
    """Freeze everything but what the phase trains: no gradients, and eval mode so that buffers do not change.

    Returns the parameters to train.
    """
    for module in (student.net, method):
        module.requires_grad_(False).eval()
    for module in phase.trains:
        module.requires_grad_(True).train()
    return list(dict.fromkeys(p for module in phase.trains for p in module.parameters()))


def pretrained(student: Tapped) -> list[nn.Parameter]:
    """The student's parameters that come from pretrained weights."""
    return [parameter for name, parameter in student.net.named_parameters() if name in student.loaded]


def step_of(
    batch: Batch,
    cfg: TrainConfig,
    student: Tapped,
    teacher: Tapped | None,
    epoch: int = 0,
    progress: float = 0.0,
    autocast: Autocast = nullcontext,
    starts_epoch: bool = False,
    random: torch.Generator | None = None,
) -> Step:
    """The step of a batch, or of a part of one."""
    return Step(
        laid_out(batch.images, channels_last=cfg.channels_last),
        batch.labels,
        batch.index,
        student,
        teacher,
        epoch,
        progress,
        autocast,
        starts_epoch=starts_epoch,
        for_teacher=batch.for_teacher,
        targets=batch.targets,
        labelled=batch.labelled,
        label_smoothing=cfg.label_smoothing,
        class_weights=batch.class_weights,
        stored=batch.stored,
        counts=batch.counts,
        random=random,
    )


def _computing(cfg: TrainConfig, *networks: Tapped | None) -> AbstractContextManager[None]:
    nets = [network.net for network in networks if network is not None]
    return computing(nets, cfg.precision, channels_last=cfg.channels_last, deterministic=cfg.deterministic)


def common_random(seed: int, accelerator: Accelerator) -> torch.Generator | None:
    """Random numbers that all processes have in common. One process uses torch's own: None."""
    return torch.Generator(accelerator.device).manual_seed(seed) if processes.count() > 1 else None


def _averaged(net: nn.Module, cfg: TrainConfig) -> AveragedModel | None:
    """A copy of the network for the moving average of its weights; None if `cfg` asks for none."""
    if not cfg.ema:
        return None
    ema = get_ema_multi_avg_fn(cfg.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(net, multi_avg_fn=ema, use_buffers=True)


def _facts(point: Mapping[str, float], epochs: float) -> str:
    """What a person wants to know at a point of the curves."""
    reached = f", validation accuracy {point['val_accuracy']:.1%}" if "val_accuracy" in point else ""
    return f"epoch {round(point['epoch'], 2):g} of {round(epochs, 2):g}{reached}"


def _weighted_sum(loss: Loss, phase: Phase) -> Tensor:
    if not loss:
        raise InputError(
            f"Phase {phase.name} has nothing to learn from. Raise method.ce_weight, kd_weight or term_weight "
            "above 0."
        )
    return torch.stack([term.weight * term.value for term in loss.values()]).sum()


def _synchronise(method: Method[Any], *networks: nn.Module) -> None:
    """Each process has seen other images, so its batch norms differ; all continue with the mean."""
    different = {id(net): net for net in networks}.values()
    processes.average(b for net in different for b in net.buffers() if b.is_floating_point())
    method.synchronise()
