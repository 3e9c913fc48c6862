"""Which `term_weight` gives a method's own terms half of the student's gradient, beside labels and KD."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.batches import Batch, Batches
from pipeline.methods import Loss, Method, Phase
from pipeline.runs.context import Context
from pipeline.runs.run import Run
from pipeline.runs.student import build_student, load_initial
from pipeline.settings import InputError
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import pretrained, set_trainable, step_of
from pipeline.training.monitor import BASE, gradient_norm
from pipeline.training.recipe import TrainConfig

STEPS = 50
PROGRESS = 0.25  # as if a quarter of the phase were done: terms are warmed up, and not yet stopped


@dataclass(frozen=True)
class Balance:
    weight: float  # that balances the terms: median over the steps
    low: float  # quartiles of it
    high: float
    share: float  # of the gradient that the terms have with their current weight, median
    steps: int


def balance_run(run: Run, *, data: Path, teacher: Path, initial: Path) -> Balance:
    """Balance the last phase of a run's method with the student of its first seed, in STEPS steps or more."""
    if run.partner:
        raise InputError(
            f"runs.{run.name}.method.combine: two methods have two weights. Balance each method on its own."
        )
    context, seed = Context.of_students(data, run.protocol, run.augment), run.seeds[0]
    teacher_net = context.load_network(teacher)
    student, method = build_student(context, run, seed, teacher_net)
    phase = method.phases(student)[-1]
    load_initial(initial / f"seed-{seed}", student, method)
    cfg = run.training(phase.name)
    batches = _enough(context.batches(cfg, seed, student, teacher_net, needs_labels=phase.needs_labels))
    return balance(phase, batches, cfg, student=student, teacher=teacher_net, method=method)


def balance(
    phase: Phase,
    batches: Iterable[Batch],
    cfg: TrainConfig,
    *,
    student: Tapped,
    teacher: Tapped | None,
    method: Method[Any],
) -> Balance:
    """Train on `batches`, and find the weight that balances the terms at each step.

    The training itself uses the median of the weights found so far, because the size of the terms depends on
    where the training goes.
    """
    parameters = set_trainable(phase, student, method)
    trained = [parameter for parameter in student.net.parameters() if parameter.requires_grad]
    optimizer = cfg.build_optimizer(parameters, pretrained(student))
    weights: list[float] = []
    shares: list[float] = []
    for n, batch in enumerate(batches):
        step = step_of(batch, cfg, student, teacher, progress=PROGRESS, starts_epoch=n == 0)
        base, terms, current = _sides(phase.loss(step))
        of_terms, of_base = gradient_norm(terms, trained), gradient_norm(base, trained)
        if of_terms > 0 and of_base > 0:
            weights.append(of_base / of_terms)
            shares.append(current * of_terms / (current * of_terms + of_base))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(base + (statistics.median(weights) if weights else current) * terms)
        method.after_backward(step, student)
        cfg.clip_gradients(parameters)
        optimizer.step()
    if not weights:
        raise InputError(
            "The terms had no gradient on the student in any step, so there is nothing to balance."
        )
    low, _, high = statistics.quantiles(weights, n=4, method="inclusive") if len(weights) > 1 else weights * 3
    return Balance(statistics.median(weights), low, high, statistics.median(shares), len(weights))


def _enough(batches: Batches) -> Iterator[Batch]:
    """Whole epochs, until there are at least STEPS batches."""
    for epoch in range(-(-STEPS // len(batches))):
        yield from batches.epoch(epoch)


def _sides(loss: Loss) -> tuple[Tensor, Tensor, float]:
    """Labels and KD, weighted and summed; the method's own terms, summed; and the current weight of these."""
    base = [term.weight * term.value for name, term in loss.items() if name in BASE]
    terms = [term for name, term in loss.items() if name not in BASE]
    if not terms:
        raise InputError(
            "The method's last phase has no terms of its own, so there is no term_weight to choose."
        )
    if not base:
        raise InputError(
            "ce_weight and kd_weight are both 0, so there is nothing to balance the terms against."
        )
    return torch.stack(base).sum(), torch.stack([term.value for term in terms]).sum(), terms[0].weight
