"""The cross-entropy of a step, with smoothed and mixed labels, and that every method uses it."""

import math

import pytest
import torch
from torch import Tensor
from world import World, noise

from pipeline import methods
from pipeline.taps import Step


def slow_cross_entropy(logits: Tensor, targets: list[list[float]], smoothing: float) -> float:
    """The mean over images of `-sum_c ((1 - s) y_c + s / classes) log p_c`."""
    total = 0.0
    for z, y in zip(logits.tolist(), targets, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in z))
        total -= sum(
            ((1 - smoothing) * share + smoothing / len(z)) * (value - log_sum)
            for value, share in zip(z, y, strict=True)
        )
    return total / len(targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_it_is_that_of_smoothed_and_mixed_labels(smoothing: float) -> None:
    logits, labels = 3 * noise(4, 3), torch.tensor([0, 2, 1, 2])
    mixed = torch.tensor([[0.75, 0.25, 0], [0, 0, 1], [0.5, 0.5, 0], [0.1, 0, 0.9]], dtype=torch.float64)
    for targets, rows in ((None, torch.eye(3)[labels].tolist()), (mixed, mixed.tolist())):
        step = Step(torch.empty(4), labels, torch.arange(4), targets=targets, label_smoothing=smoothing)
        expected = slow_cross_entropy(logits, rows, smoothing)
        assert step.cross_entropy(logits).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_learns_from_smoothed_and_mixed_labels(name: str) -> None:
    world = World.make()
    method = world.method(name, ce_weight=0.5)
    found = 0
    for phase in method.phases(world.student):
        plain, smooth, mixed = world.step(), world.step(), world.step()
        smooth.label_smoothing = 0.4
        mixed.targets = torch.full((8, 3), 1 / 3)
        values = [loss["ce"].value for step in (plain, smooth, mixed) if "ce" in (loss := phase.loss(step))]
        found += len(values)
        assert len({round(value.item(), 5) for value in values}) == len(values)
    assert found >= 3
