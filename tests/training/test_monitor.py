import math

import pytest
import torch
from world import QUICK, World

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.taps.step import Step
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


class Own(Method[MethodConfig]):
    def terms(self, step: Step) -> Terms:
        return {"own": step.student.logits.square().mean()}


def printed_by(method: str | dict[str, float], capsys: pytest.CaptureFixture[str]) -> str:
    """What two seeds print: of `Own` with these weights, or of KD with hardly any labels."""
    print_once.cache_clear()
    for _seed in range(2):
        world = World.make()
        if isinstance(method, str):
            trained = world.method(method, ce_weight=1e-6)
        else:
            trained = Own(MethodConfig(name="own", **method), world.step(4), torch.zeros(4))
        curves = world.fit(trained, cfg=QUICK.model_copy(update={"epochs": 3}))
        shares = [column for name, column in curves.items() if name.startswith("share of ")]
        assert [round(sum(each), 6) for each in zip(*shares, strict=True)] == [1, 1, 1]
    return capsys.readouterr().out


def test_own_terms_with_extreme_shares_are_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    drowning = printed_by({"ce_weight": 1e-6, "kd_weight": 0, "term_weight": 1}, capsys)
    assert drowning.count("the term 'own' makes up over 95% of the student's gradient") == 1
    assert "'ce'" not in drowning
    drowned = printed_by({"ce_weight": 1, "kd_weight": 0, "term_weight": 1e-6}, capsys)
    assert drowned.count("the term 'own' makes up under 0.1% of the student's gradient") == 1
    assert drowned.count("the term 'ce' makes up over 95% of the student's gradient") == 1


@pytest.mark.parametrize("method", ["kd", {"ce_weight": 1e-6, "kd_weight": 1, "term_weight": 0}])
def test_the_balance_of_labels_and_kd_is_not_reported(
    method: str | dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "gradient" not in printed_by(method, capsys)


def test_an_own_term_beside_little_of_the_labels_is_no_reason_to_report_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = printed_by({"ce_weight": 1e-7, "kd_weight": 1, "term_weight": 1}, capsys)
    assert "'ce'" not in printed


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
