from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline.methods import Loss, Phase, Weighted
from pipeline.runs.term_balance import Balance, balance
from pipeline.taps.step import Step


def balance_of(loss: Callable[[Step], Loss], steps: int = 6) -> Balance:
    world = World.make()
    method = world.method("ce")
    batches = [batch for epoch in range(steps) for batch in world.batches(8).epoch(epoch)][:steps]
    phase = Phase("distill", loss, (world.student.net,))
    return balance(phase, batches, QUICK, student=world.student, teacher=world.teacher, method=method)


def cross_entropy(step: Step) -> Tensor:
    return nn.functional.cross_entropy(step.student.logits, step.labels)


def test_a_term_that_is_seven_times_the_labels_gets_a_seventh_of_their_weight() -> None:
    def loss(step: Step) -> Loss:
        return {"ce": Weighted(cross_entropy(step), 2.0), "own": Weighted(7 * cross_entropy(step), 1.0)}

    found = balance_of(loss)
    assert found.weight == pytest.approx(2 / 7, rel=1e-4)
    assert (found.low, found.high) == pytest.approx((2 / 7, 2 / 7), rel=1e-4)
    assert found.share == pytest.approx(7 / 9, rel=1e-4)
    assert found.steps == 6


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 0.3}, {"clip": 0.01}, {"pretrained_lr": 0.1}, {"decay": "weights"}]
)
def test_it_trains_as_the_phase_does(settings: dict[str, float | str]) -> None:
    weights = []
    for cfg in (QUICK, QUICK.model_copy(update=settings)):
        world = World.make()
        world.student.loaded = frozenset(name for name, _ in world.student.net.named_parameters())
        method = world.method("at")
        (phase,) = method.phases(world.student)
        batches = world.batches(8).epoch(0)
        balance(phase, batches, cfg, student=world.student, teacher=world.teacher, method=method)
        weights.append(snapshot(world.student.net))
    assert moved(*weights)


def test_all_terms_of_a_method_count_together() -> None:
    def loss(step: Step) -> Loss:
        value = cross_entropy(step)
        return {"ce": Weighted(value, 1.0), "one": Weighted(3 * value, 5.0), "two": Weighted(-value, 5.0)}

    assert balance_of(loss).weight == pytest.approx(1 / 2, rel=1e-4)


def test_the_weight_balances_a_real_method() -> None:
    world = World.make()
    method = world.method("at")
    (phase,) = method.phases(world.student)
    batches = [batch for epoch in range(4) for batch in world.batches(8).epoch(epoch)]
    found = balance(phase, batches, QUICK, student=world.student, teacher=world.teacher, method=method)
    again = World.make()
    curves = again.fit(again.method("at", term_weight=found.weight))
    assert 0.2 < curves["share of attention"][0] < 0.8
    assert (
        World.make().fit(World.make().method("at"))["share of attention"][0] > 0.8
    )  # with the default of 1000


def only_labels(step: Step) -> Loss:
    return {"ce": Weighted(cross_entropy(step), 1.0)}


def only_a_term(step: Step) -> Loss:
    return {"own": Weighted(cross_entropy(step), 1.0)}


def a_term_of_0(step: Step) -> Loss:
    return only_labels(step) | {"own": Weighted(0 * cross_entropy(step), 1.0)}


def a_constant_term(step: Step) -> Loss:
    return only_labels(step) | {"own": Weighted(torch.ones(()), 1.0)}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (only_labels, "no terms of its own"),
        (only_a_term, "both 0"),
        (a_term_of_0, "no gradient"),
        (a_constant_term, "no gradient"),
    ],
)
def test_what_cannot_be_balanced_is_refused(loss: Callable[[Step], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balance_of(loss)


def test_steps_without_a_gradient_are_left_out() -> None:
    def loss(step: Step) -> Loss:
        on = float(step.index[0] % 2)
        return {"ce": Weighted(cross_entropy(step), 1.0), "own": Weighted(on * cross_entropy(step), 1.0)}

    torch.manual_seed(0)
    found = balance_of(loss, steps=9)
    assert 0 < found.steps < 9
    assert found.weight == pytest.approx(1.0, rel=1e-4)


def test_a_term_is_balanced_as_after_its_warm_up() -> None:
    found = []
    for share in (0.0, 0.1):
        world = World.make()
        method = world.method("dkd", warm_up=share)
        (phase,) = method.phases(world.student)
        nets = {"student": world.student, "teacher": world.teacher}
        found.append(balance(phase, world.batches(8).epoch(0), QUICK, method=method, **nets).weight)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
