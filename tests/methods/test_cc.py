import math
from typing import Any

import pytest
import torch
from torch import Tensor
from world import World, noise

from pipeline.methods.cc import Config, CorrelationCongruence, correlation
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step


def step_of(student: Tensor, teacher: Tensor) -> Step:
    s, t = (Answer(torch.zeros(len(x), 2), {}, x, {}) for x in (student, teacher))
    return Step.of(
        student=s, teacher=t, labels=torch.zeros(len(student)).long(), index=torch.arange(len(student))
    )


def made(student: Tensor, teacher: Tensor, **settings: Any) -> CorrelationCongruence:
    config = Config(name="cc", **settings)
    return CorrelationCongruence(config, step_of(student, teacher), torch.zeros(2)).double()


def slow_correlation(x: list[list[float]], gamma: float, order: int) -> list[list[float]]:
    unit = [[value / sum(v * v for v in row) ** 0.5 for value in row] for row in x]
    dots = [[sum(p * q for p, q in zip(a, b, strict=True)) for b in unit] for a in unit]
    series = [
        [sum((2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1)) for dot in row]
        for row in dots
    ]
    return [[math.exp(-2 * gamma) * value for value in row] for row in series]


def slow_projection(x: Tensor, weight: Tensor) -> list[list[float]]:
    return [
        [sum(w * v for w, v in zip(row, vector, strict=True)) for row in weight.tolist()]
        for vector in x.tolist()
    ]


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.7, 3)])
def test_the_term_equals_the_slow_loop(gamma: float, order: int) -> None:
    torch.manual_seed(0)
    student, teacher = noise(4, 3), noise(4, 6)
    method = made(student, teacher, gamma=gamma, order=order, dimensions=5)
    c_s = slow_correlation(slow_projection(student, method.student_projection.weight), gamma, order)
    c_t = slow_correlation(slow_projection(teacher, method.teacher_projection), gamma, order)
    slow = sum((c_s[i][j] - c_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 4**2
    assert method.terms(step_of(student, teacher))["correlation"].item() == pytest.approx(slow, rel=1e-9)


def test_a_series_of_high_order_is_the_gaussian_kernel() -> None:
    x = noise(4, 3)
    unit = x / x.norm(dim=1, keepdim=True)
    assert torch.allclose(correlation(x, 0.4, 20), torch.exp(-0.4 * torch.cdist(unit, unit) ** 2))


def test_a_student_with_the_projection_of_its_teacher_has_nothing_to_learn() -> None:
    same = noise(4, 6)
    method = made(same, same)
    method.student_projection.weight.data.copy_(method.teacher_projection)
    assert method.terms(step_of(same, same))["correlation"].item() == pytest.approx(0, abs=1e-20)


def test_a_projection_that_is_wide_enough_keeps_the_correlations_of_the_teacher() -> None:
    teacher = noise(4, 6)
    projected = teacher @ made(noise(4, 3), teacher, dimensions=6).teacher_projection.T
    assert torch.allclose(correlation(projected, 0.4, 2), correlation(teacher, 0.4, 2), atol=1e-6)


def test_the_length_of_an_embedding_does_not_matter() -> None:
    x = noise(4, 3)
    assert torch.allclose(
        correlation(x * torch.tensor([[1.0], [2], [3], [4]]), 0.4, 2), correlation(x, 0.4, 2)
    )


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(3, 4).requires_grad_(), noise(3, 5)
    method = made(student.detach(), teacher, dimensions=3)
    assert torch.autograd.gradcheck(lambda s: method.terms(step_of(s, teacher))["correlation"], (student,))


def test_one_image_has_nothing_to_learn() -> None:
    student, teacher = noise(1, 4).requires_grad_(), noise(1, 5)
    value = made(student.detach(), teacher).terms(step_of(student, teacher))["correlation"]
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-20)


def test_only_the_projection_of_the_student_is_trained() -> None:
    method = World.make().method("cc")
    assert [name for name, _ in method.named_parameters()] == ["student_projection.weight"]
    assert [tuple(b.shape) for b in method.buffers()] == [(128, 64)]


@pytest.mark.parametrize("wrong", [{"order": 0}, {"gamma": 0.0}, {"dimensions": 0}])
def test_settings_that_make_no_kernel_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(name="cc", **wrong)
