import math
from typing import Any

import pytest
import torch
from torch import Tensor
from world import World

from pipeline.methods.cc import CorrelationCongruence, correlation
from pipeline.taps import Step, View


def embeddings(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def stepped(student: Tensor, teacher: Tensor) -> Step:
    s, t = (View(torch.zeros(len(x), 2), {}, x, {}) for x in (student, teacher))
    return Step.of(student=s, teacher=t, labels=torch.zeros(len(student)).long(), index=torch.arange(len(student)))


def made(student: Tensor, teacher: Tensor, **settings: Any) -> CorrelationCongruence:
    config = CorrelationCongruence.Config(name="cc", **settings)
    return CorrelationCongruence(config, stepped(student, teacher), torch.zeros(2)).double()


def slow_correlation(x: list[list[float]], gamma: float, order: int) -> list[list[float]]:
    unit = [[value / sum(v * v for v in row) ** 0.5 for value in row] for row in x]
    dots = [[sum(p * q for p, q in zip(a, b, strict=True)) for b in unit] for a in unit]
    series = [[sum((2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1)) for dot in row] for row in dots]
    return [[math.exp(-2 * gamma) * value for value in row] for row in series]


def slow_projection(x: Tensor, weight: Tensor) -> list[list[float]]:
    return [[sum(w * v for w, v in zip(row, vector, strict=True)) for row in weight.tolist()] for vector in x.tolist()]


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.7, 3)])
def test_the_term_equals_the_slow_loop(gamma: float, order: int) -> None:
    torch.manual_seed(0)
    student, teacher = embeddings(4, 3), embeddings(4, 6)
    method = made(student, teacher, gamma=gamma, order=order, dimensions=5)
    c_s = slow_correlation(slow_projection(student, method.student_projection.weight), gamma, order)
    c_t = slow_correlation(slow_projection(teacher, method.teacher_projection), gamma, order)
    slow = sum((c_s[i][j] - c_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 4**2
    assert method.terms(stepped(student, teacher))["correlation"].item() == pytest.approx(slow, rel=1e-9)


def test_a_long_series_is_the_gaussian_kernel() -> None:
    x = embeddings(4, 3)
    unit = x / x.norm(dim=1, keepdim=True)
    assert torch.allclose(correlation(x, 0.4, 20), torch.exp(-0.4 * torch.cdist(unit, unit) ** 2))


def test_a_student_with_its_teachers_projection_has_nothing_to_learn() -> None:
    same = embeddings(4, 6)
    method = made(same, same)
    method.student_projection.weight.data.copy_(method.teacher_projection)
    assert method.terms(stepped(same, same))["correlation"].item() == pytest.approx(0, abs=1e-20)


def test_a_wide_enough_projection_of_the_teacher_keeps_its_correlations() -> None:
    teacher = embeddings(4, 6)
    projected = teacher @ made(embeddings(4, 3), teacher, dimensions=6).teacher_projection.T
    assert torch.allclose(correlation(projected, 0.4, 2), correlation(teacher, 0.4, 2), atol=1e-6)


def test_the_length_of_an_embedding_does_not_matter() -> None:
    x = embeddings(4, 3)
    assert torch.allclose(correlation(x * torch.tensor([[1.0], [2], [3], [4]]), 0.4, 2), correlation(x, 0.4, 2))


def test_gradcheck() -> None:
    student, teacher = embeddings(3, 4).requires_grad_(), embeddings(3, 5)
    method = made(student.detach(), teacher, dimensions=3)
    assert torch.autograd.gradcheck(lambda s: method.terms(stepped(s, teacher))["correlation"], (student,))


def test_one_instance_is_like_every_other_one() -> None:
    student, teacher = embeddings(1, 4).requires_grad_(), embeddings(1, 5)
    value = made(student.detach(), teacher).terms(stepped(student, teacher))["correlation"]
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-20)


def test_only_the_students_projection_learns() -> None:
    method = World.make().method("cc")
    assert [name for name, _ in method.named_parameters()] == ["student_projection.weight"]
    assert [tuple(b.shape) for b in method.buffers()] == [(128, 64)]


@pytest.mark.parametrize("wrong", [{"order": 0}, {"gamma": 0.0}, {"dimensions": 0}])
def test_settings_without_a_kernel_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CorrelationCongruence.Config(name="cc", **wrong)
