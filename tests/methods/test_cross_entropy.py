"""The cross-entropy of a step, with smoothed and mixed labels, and that every method uses it."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from world import World, noise

from pipeline import methods
from pipeline.taps.step import Step


def slow_cross_entropy(
    logits: Tensor, targets: list[list[float]], smoothing: float, weights: Sequence[float] = (1, 1, 1)
) -> float:
    """The mean over images of `-sum_c ((1 - s) w_c y_c + s / classes sum_k w_k y_k) log p_c`."""
    total = 0.0
    for z, y in zip(logits.tolist(), targets, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in z))
        whole = sum(share * weight for share, weight in zip(y, weights, strict=True))
        total -= sum(
            ((1 - smoothing) * share * weight + smoothing / len(z) * whole) * (value - log_sum)
            for value, share, weight in zip(z, y, weights, strict=True)
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
        for weights in ([1.0, 1.0, 1.0], [0.5, 4.0, 1.25]):
            step.class_weights = torch.tensor(weights, dtype=torch.float64)
            expected = slow_cross_entropy(logits, rows, smoothing, weights)
            assert step.cross_entropy(logits).item() == pytest.approx(expected, rel=1e-7)


def test_the_weight_of_an_image_is_that_of_its_label_whatever_else_is_in_the_batch() -> None:
    logits, labels, weights = noise(3, 3), torch.tensor([0, 1, 2]), torch.tensor([0.25, 1.0, 8.0])
    alone = [
        Step(torch.empty(1), labels[i : i + 1], torch.arange(1), class_weights=weights) for i in range(3)
    ]
    single = [step.cross_entropy(logits[i : i + 1]).item() for i, step in enumerate(alone)]
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights
    assert single == pytest.approx(plain.tolist(), rel=1e-6)
    together = Step(torch.empty(3), labels, torch.arange(3), class_weights=weights).cross_entropy(logits)
    assert together.item() == pytest.approx(sum(single) / 3, rel=1e-6)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_learns_from_smoothed_mixed_and_weighted_labels(name: str) -> None:
    world = World.make()
    method = world.method(name, ce_weight=0.5)
    found = 0
    for phase in method.phases(world.student):
        plain, smooth, mixed, heavy = (world.step() for _ in range(4))
        smooth.label_smoothing = 0.4
        mixed.targets = torch.full((8, 3), 1 / 3)
        heavy.class_weights = torch.tensor([0.5, 2.0, 3.0])
        steps = (plain, smooth, mixed, heavy)
        values = [loss["ce"].value for step in steps if "ce" in (loss := phase.loss(step))]
        found += len(values)
        assert len({round(value.item(), 5) for value in values}) == len(values)
    assert found >= 4


def test_only_cross_entropy_is_weighted() -> None:
    world = World.make()
    method = world.method("at", kd_weight=1.0)
    plain, heavy = world.step(), world.step()
    heavy.class_weights = torch.tensor([0.5, 2.0, 3.0])
    one, other = (method.loss(step) for step in (plain, heavy))
    differ = {name for name in one if one[name].value.item() != pytest.approx(other[name].value.item())}
    assert (differ, len(one)) == ({"ce"}, 3)
