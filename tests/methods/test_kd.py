import math

import pytest
import torch
from world import World, noise

from pipeline.functional import softened_kl


def slow_kl(student: list[list[float]], teacher: list[list[float]], tau: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        e_s, e_t = [math.exp(z / tau) for z in z_s], [math.exp(z / tau) for z in z_t]
        p_s, p_t = [e / sum(e_s) for e in e_s], [e / sum(e_t) for e in e_t]
        total += sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True))
    return tau**2 * total / len(student)


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0, 8.0])
def test_softened_kl_equals_the_slow_loop(tau: float) -> None:
    torch.manual_seed(0)
    student, teacher = noise(2, 5, 7) * 3
    assert softened_kl(student, teacher, tau).item() == pytest.approx(
        slow_kl(student.tolist(), teacher.tolist(), tau), rel=1e-9
    )


def test_softened_kl_of_equal_logits_is_0() -> None:
    logits = noise(4, 5).requires_grad_()
    value = softened_kl(logits, logits.detach(), 4.0)
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def test_a_shift_of_the_logits_does_not_change_softened_kl() -> None:
    student, teacher = noise(2, 4, 5)
    assert softened_kl(student + 3, teacher - 7, 2.0).item() == pytest.approx(
        softened_kl(student, teacher, 2.0).item()
    )


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(3, 4).requires_grad_(), noise(3, 4)
    assert torch.autograd.gradcheck(lambda s: softened_kl(s, teacher, 4.0), (student,))


def test_the_loss_has_the_weights_of_the_settings() -> None:
    world = World.make()
    step = world.step()
    loss = world.method("kd", ce_weight=0.3, kd_weight=0.6, temperature=2.0).loss(step)
    assert {name: weight for name, (_, weight) in loss.items()} == {"ce": 0.3, "kd": 0.6}
    assert loss["ce"].value.item() == pytest.approx(
        torch.nn.functional.cross_entropy(step.student.logits, step.labels).item()
    )
    assert loss["kd"].value.item() == pytest.approx(
        softened_kl(step.student.logits, step.teacher.logits, 2.0).item()
    )
    assert "ce" not in world.method("kd", ce_weight=0.0).loss(step)
