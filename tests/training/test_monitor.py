import math

import pytest
import torch
from world import QUICK, World

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.taps import Step
from pipeline.training.loop import shares_are_due
from pipeline.training.monitor import gradient_shares, print_once


class Broken(Method[MethodConfig]):
    def terms(self, step: Step) -> Terms:
        return {
            "tidy": step.student.logits.square().mean(),
            "wild": step.student.logits.sum() * (math.nan if step.epoch == 1 else 1.0),
        }


def test_a_nan_names_the_term_and_the_step() -> None:
    world = World.make()
    method = Broken(MethodConfig(name="broken"), world.step(4), torch.zeros(4))
    with pytest.raises(
        ValueError, match=r"Phase distill, epoch 1, step 0: the term 'wild' is nan.*train\.lr"
    ):
        world.fit(method)


def test_shares_are_the_terms_parts_of_the_students_gradient() -> None:
    world = World.make()
    loss = world.method("kd", ce_weight=0.3).loss(world.step())
    norms = {}
    for name, (value, weight) in loss.items():
        world.student.net.zero_grad()
        torch.autograd.backward(weight * value, retain_graph=True)
        gradients = [p.grad for p in world.student.net.parameters() if p.grad is not None]
        norms[name] = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
    shares = gradient_shares(loss, world.student.net)
    expected = {name: norm / sum(norms.values()) for name, norm in norms.items()}
    assert shares == pytest.approx(expected, rel=1e-5)


def test_terms_with_extreme_shares_are_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_once.cache_clear()
    for _seed in range(2):
        world = World.make()
        curves = world.fit(world.method("kd", ce_weight=1e-6), cfg=QUICK.model_copy(update={"epochs": 3}))
    printed = capsys.readouterr().out
    assert printed.count("the term 'kd' makes up over 95% of the student's gradient") == 1
    assert printed.count("the term 'ce' makes up under 0.1% of the student's gradient") == 1
    assert [
        round(kd + ce, 6) for kd, ce in zip(curves["share of kd"], curves["share of ce"], strict=True)
    ] == [1, 1, 1]


def test_terms_with_ordinary_shares_are_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    print_once.cache_clear()
    world = World.make()
    curves = world.fit(world.method("kd"))
    assert 0.001 < curves["share of ce"][0] < 0.95
    assert "gradient" not in capsys.readouterr().out


def test_shares_are_measured_often_at_first_and_rarely_later() -> None:
    assert [step for step in range(700) if shares_are_due(step)] == [0, 50, 100, 150, 200, 400, 600]


def test_a_term_that_is_missing_at_some_points_has_a_full_column() -> None:
    class Guest(Method[MethodConfig]):
        def terms(self, step: Step) -> Terms:
            return {"guest": step.student.logits.square().mean()} if step.epoch == 1 else {}

    world = World.make(n=8)
    method = Guest(MethodConfig(name="guest"), world.step(4), torch.zeros(4))
    curves = world.fit(method, cfg=QUICK.model_copy(update={"epochs": 3}))
    assert {len(column) for column in curves.values()} == {3}
    assert [value > 0 for value in curves["guest"]] == [False, True, False]
