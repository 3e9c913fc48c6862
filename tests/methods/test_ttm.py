import math
from functools import partial

import pytest
import torch
from world import noise, terms_of_logits

from pipeline.functional import softened_kl
from pipeline.methods.ttm import TransformedTeacher

terms = partial(terms_of_logits, TransformedTeacher)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def power(probabilities: list[float], gamma: float) -> list[float]:
    """The power transform of the paper."""
    powers = [p**gamma for p in probabilities]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_the_term_equals_the_slow_loop(gamma: float) -> None:
    torch.manual_seed(0)
    student, teacher = 3 * noise(5, 4), 3 * noise(5, 4)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    divergences = [kl(power(softmax(z_t), gamma), softmax(z_s)) for z_s, z_t in rows]
    found = terms(student, teacher, temperature=1 / gamma)
    assert found["transformed"].item() == pytest.approx(sum(divergences) / 5, rel=1e-9)


def test_at_temperature_1_it_is_plain_kl() -> None:
    student, teacher = noise(5, 4), noise(5, 4)
    assert terms(student, teacher, temperature=1.0)["transformed"].item() == pytest.approx(
        softened_kl(student, teacher, 1.0).item(), rel=1e-9
    )


def test_it_is_kd_and_a_reward_for_the_renyi_entropy_of_the_student() -> None:
    """`tau * KL(p_T || q_T) + (tau - 1) * (H(p_T) - H_gamma(q))`: the paper's result."""
    torch.manual_seed(0)
    tau, z_s, z_t = 4.0, 2 * noise(1, 5), 2 * noise(1, 5)
    p, q = softmax(z_t[0].tolist()), softmax(z_s[0].tolist())
    softened = power(p, 1 / tau)
    entropy = -sum(a * math.log(a) for a in softened)
    renyi = math.log(sum(b ** (1 / tau) for b in q)) / (1 - 1 / tau)
    expected = tau * kl(softened, power(q, 1 / tau)) + (tau - 1) * (entropy - renyi)
    assert terms(z_s, z_t, temperature=tau)["transformed"].item() == pytest.approx(expected, rel=1e-9)


def test_the_best_student_has_the_teachers_softened_answer() -> None:
    teacher = noise(3, 4)
    student = (teacher / 10).requires_grad_()
    value = terms(student, teacher, temperature=10.0)["transformed"]
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(3, 4).requires_grad_(), noise(3, 4)
    assert torch.autograd.gradcheck(lambda s: terms(s, teacher)["transformed"], (student,))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature\n.*greater than 0"):
        terms(noise(2, 3), noise(2, 3), temperature=temperature)
