import pytest
import torch
from torch import Tensor, nn
from world import QUICK, World

from pipeline.balance import balance
from pipeline.methods.base import Loss, Phase, Weighted
from pipeline.taps import Step


def found(loss, steps: int = 6):  # type: ignore[no-untyped-def]
    world = World.make()
    method = world.method("ce")
    batches = [batch for epoch in range(steps) for batch in world.batches(8).epoch(epoch)][:steps]
    phase = Phase("distill", loss, (world.student.net,))
    return balance(phase, batches, QUICK, student=world.student, teacher=world.teacher, method=method)


def cross_entropy(step: Step) -> Tensor:
    return nn.functional.cross_entropy(step.student.logits, step.labels)


def test_a_term_that_is_seven_times_the_labels_gets_a_seventh() -> None:
    def loss(step: Step) -> Loss:
        return {"ce": Weighted(cross_entropy(step), 2.0), "own": Weighted(7 * cross_entropy(step), 1.0)}

    answer = found(loss)
    assert answer.weight == pytest.approx(2 / 7, rel=1e-4)
    assert (answer.low, answer.high) == pytest.approx((2 / 7, 2 / 7), rel=1e-4)
    assert answer.share == pytest.approx(7 / 9, rel=1e-4)
    assert answer.steps == 6


def test_terms_of_a_method_count_together() -> None:
    def loss(step: Step) -> Loss:
        value = cross_entropy(step)
        return {"ce": Weighted(value, 1.0), "one": Weighted(3 * value, 5.0), "two": Weighted(-value, 5.0)}

    assert found(loss).weight == pytest.approx(1 / 2, rel=1e-4)


def test_the_weight_found_balances_a_real_method() -> None:
    world = World.make()
    method = world.method("at")
    (phase,) = method.phases(world.student)
    batches = [batch for epoch in range(4) for batch in world.batches(8).epoch(epoch)]
    weight = balance(phase, batches, QUICK, student=world.student, teacher=world.teacher, method=method).weight
    again = World.make()
    curves = again.fit(again.method("at", term_weight=weight))
    assert 0.2 < curves["share of attention"][0] < 0.8
    assert World.make().fit(World.make().method("at"))["share of attention"][0] > 0.8  # at the table's 1000


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda step: {"ce": Weighted(cross_entropy(step), 1.0)}, "no terms of its own"),
        (lambda step: {"own": Weighted(cross_entropy(step), 1.0)}, "both 0"),
        (lambda step: {"ce": Weighted(cross_entropy(step), 1.0), "own": Weighted(0 * cross_entropy(step), 1.0)}, "no gradient"),
    ],
)
def test_what_cannot_be_balanced_is_said(loss, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        found(loss)


def test_steps_without_a_gradient_are_left_out() -> None:
    def loss(step: Step) -> Loss:
        on = float(step.index[0] % 2)
        return {"ce": Weighted(cross_entropy(step), 1.0), "own": Weighted(on * cross_entropy(step), 1.0)}

    torch.manual_seed(0)
    answer = found(loss, steps=9)
    assert 0 < answer.steps < 9
    assert answer.weight == pytest.approx(1.0, rel=1e-4)
