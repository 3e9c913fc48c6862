import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from world import World, noise

from pipeline.functional import squared_distances
from pipeline.methods.rkd import angle_loss, cosines, distance_loss

Term = Callable[[Tensor, Tensor], Tensor]
Slow = Callable[[list[list[float]]], list[float]]


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    return distance_loss(squared_distances(student), squared_distances(teacher))


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    return angle_loss(squared_distances(student), squared_distances(teacher))


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def slow_distances(x: list[list[float]]) -> list[float]:
    distances = [math.dist(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    return [d / (sum(distances) / len(distances)) for d in distances]


def slow_angles(x: list[list[float]]) -> list[float]:
    angles = []
    for i, a in enumerate(x):
        for j, b in enumerate(x):
            for k, c in enumerate(x):
                if len({i, j, k}) == 3:
                    dot = sum((p - q) * (r - q) for p, q, r in zip(a, b, c, strict=True))
                    angles.append(dot / (math.dist(a, b) * math.dist(c, b)))
    return angles


@pytest.mark.parametrize(("fast", "slow"), [(distance, slow_distances), (angle, slow_angles)])
@pytest.mark.parametrize("scale", [1.0, 3.0])  # with and without the linear part of the Huber loss
def test_the_terms_equal_the_slow_loops(fast: Term, slow: Slow, scale: float) -> None:
    torch.manual_seed(0)
    student, teacher = noise(6, 3), noise(6, 5)
    student[0] *= scale**3
    losses = [huber(a, b) for a, b in zip(slow(student.tolist()), slow(teacher.tolist()), strict=True)]
    assert fast(student, teacher).item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_the_terms_are_weighted_and_compare_pooled_embeddings() -> None:
    world = World.make()
    step = world.step()
    student, teacher = step.student.pooled, step.teacher.pooled
    terms = world.method("rkd").terms(step)
    assert terms["distance"].item() == pytest.approx(25 * distance(student, teacher).item(), rel=1e-6)
    assert terms["angle"].item() == pytest.approx(50 * angle(student, teacher).item(), rel=1e-6)
    assert world.method("rkd", angle_weight=0.0).terms(step)["angle"].item() == 0


@pytest.mark.parametrize("fast", [distance, angle])
def test_a_network_equal_to_its_teacher_has_nothing_to_learn(fast: Term) -> None:
    same = noise(5, 3)
    assert fast(same, same).item() == 0


@pytest.mark.parametrize("fast", [distance, angle])
def test_shift_scale_and_rotation_do_not_matter(fast: Term) -> None:
    student, teacher = noise(5, 3), noise(5, 4)
    moved = 7 * student @ torch.linalg.qr(noise(3, 3))[0] + noise(3)
    assert fast(moved, teacher).item() == pytest.approx(fast(student, teacher).item())


@pytest.mark.parametrize("fast", [distance, angle])
def test_the_gradient_equals_finite_differences(fast: Term) -> None:
    student, teacher = noise(4, 3).requires_grad_(), noise(4, 2)
    assert torch.autograd.gradcheck(lambda s: fast(s, teacher), (student,))


def test_the_cosines_of_a_right_triangle() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    values = cosines(squared_distances(x))
    assert values[0, 1, 2].item() == pytest.approx(0, abs=1e-12)
    assert values[1, 0, 2].item() == pytest.approx(2 / 13**0.5)
    assert values[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("fast", [distance, angle])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4])
def test_embeddings_that_are_almost_equal_have_a_small_gradient(fast: Term, noise: float) -> None:
    torch.manual_seed(0)
    student = torch.randn(6, 64)
    student[1:3] = student[0] + noise * torch.randn(2, 64)
    student.requires_grad_()
    value = fast(student, torch.randn(6, 32))
    torch.autograd.backward(value)
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.abs().max() < 0.05


def test_float32_is_near_to_float64_far_from_the_origin() -> None:
    torch.manual_seed(0)
    student, teacher = noise(16, 32) + 1000, noise(16, 64) + 1000
    assert distance(student.float(), teacher.float()).item() == pytest.approx(
        distance(student, teacher).item(), rel=1e-3
    )
    assert angle(student.float(), teacher.float()).item() == pytest.approx(
        angle(student, teacher).item(), rel=1e-3
    )


@pytest.mark.parametrize(("fast", "n"), [(distance, 1), (angle, 1), (angle, 2)])
def test_a_batch_of_too_few_images_has_nothing_to_learn(fast: Term, n: int) -> None:
    student = noise(n, 3).requires_grad_()
    value = fast(student, noise(n, 4))
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.isfinite().all()
