"""Which `term_weight` gives a method's own terms as much of the student's gradient as labels and KD have together."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import Params
from pipeline.data.batches import Batch
from pipeline.inputs import InputError
from pipeline.methods.base import Loss, Method, Phase
from pipeline.runs import Lab, restore
from pipeline.taps import Step, Tapped
from pipeline.train import TrainConfig, set_motion

OWN = ("ce", "kd")  # what the base weighs by itself
STEPS = 50


@dataclass(frozen=True)
class Balance:
    weight: float  # median over the steps
    low: float  # quartiles
    high: float
    share: float  # of the gradient that the terms have at the weight of now, median
    steps: int


def balance_run(params: Params, run: str, *, data: Path, teacher: Path, initial: Path) -> Balance:
    """One epoch of the run's last phase, or STEPS where it is shorter, with the first of its students."""
    cfg = params.run(run)
    if params.partner(run):
        raise InputError(f"runs.{run}.method.combine: two methods have two weights. Ask for each by itself.")
    lab = Lab(params, data, params.run_protocol(run))
    guide, student_cfg, seed = lab.teacher(teacher), params.students[cfg.student], cfg.seeds[0]
    torch.manual_seed(seed)
    student = lab.tapped(lab.net(student_cfg.net), student_cfg.taps)
    method = lab.method(params.method(run), student, guide)
    phase = method.phases(student)[-1]
    restore(initial / f"seed-{seed}", student, method)
    train = params.phase(run, phase.name)
    batches = lab.batches(train, seed)
    epochs = -(-STEPS // len(batches))
    everything = (batch for epoch in range(epochs) for batch in batches.epoch(epoch))
    return balance(phase, everything, train, student=student, teacher=guide, method=method)


def balance(
    phase: Phase, batches: Iterable[Batch], cfg: TrainConfig, *, student: Tapped, teacher: Tapped | None, method: Method
) -> Balance:
    """Train on `batches` with the terms kept in balance, since how large they are depends on where training goes, and look at each step."""
    parameters = set_motion(phase, student, method)
    moving = [parameter for parameter in student.net.parameters() if parameter.requires_grad]
    optimiser = cfg.optimiser(parameters)
    weights: list[float] = []
    shares: list[float] = []
    for batch in batches:
        step = Step(batch.images, batch.labels, batch.index, student, teacher)
        rest, terms, now = _sides(phase.loss(step))
        ours, others = (_norm(side, moving) for side in (terms, rest))
        if ours > 0 and others > 0:
            weights.append(others / ours)
            shares.append(now * ours / (now * ours + others))
        optimiser.zero_grad(set_to_none=True)
        (rest + (statistics.median(weights) if weights else now) * terms).backward()
        method.after_backward(step, student)
        optimiser.step()
    if not weights:
        raise InputError("The terms had no gradient on the student in any step, so there's nothing to balance.")
    low, _, high = statistics.quantiles(weights, n=4, method="inclusive") if len(weights) > 1 else weights * 3
    return Balance(statistics.median(weights), low, high, statistics.median(shares), len(weights))


def _sides(loss: Loss) -> tuple[Tensor, Tensor, float]:
    """Labels and KD, weighted; the method's terms, unweighted; and the weight these have now."""
    rest = [term.weight * term.value for name, term in loss.items() if name in OWN]
    terms = [term for name, term in loss.items() if name not in OWN]
    if not terms:
        raise InputError("The method's last phase has no terms of its own, so there's no term_weight to choose.")
    if not rest:
        raise InputError("ce_weight and kd_weight are both 0, so there's nothing to balance the terms against.")
    return torch.stack(rest).sum(), torch.stack([term.value for term in terms]).sum(), terms[0].weight


def _norm(value: Tensor, moving: list[torch.nn.Parameter]) -> float:
    gradients = torch.autograd.grad(value, moving, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm().item()
