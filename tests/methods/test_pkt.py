import math

import pytest
import torch
from world import World, noise

from pipeline.methods._neighbours import cosine, neighbours, transfer


def slow_probabilities(x: list[list[float]]) -> list[list[float]]:
    def kernel(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        lengths = math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
        return (dot / lengths + 1) / 2

    rows = [[kernel(a, b) for j, b in enumerate(x) if j != i] for i, a in enumerate(x)]
    return [[value / sum(row) for value in row] for row in rows]


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = noise(5, 3), noise(5, 7)
    rows = zip(slow_probabilities(student.tolist()), slow_probabilities(teacher.tolist()), strict=True)
    pairs = [(p_s, p_t) for row_s, row_t in rows for p_s, p_t in zip(row_s, row_t, strict=True)]
    assert transfer(student, teacher).item() == pytest.approx(
        sum(t * math.log(t / s) for s, t in pairs) / len(pairs), rel=1e-9
    )


def test_the_term_compares_pooled_embeddings() -> None:
    world = World.make()
    step = world.step()
    terms = world.method("pkt").terms(step)
    assert terms["neighbours"].item() == transfer(step.student.pooled, step.teacher.pooled).item()


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = noise(5, 3)
    assert transfer(same, same).item() == 0


def test_the_term_is_never_negative() -> None:
    assert all(transfer(noise(6, 3), noise(6, 4)) > 0 for _ in range(20))


def test_rotation_and_the_length_of_each_embedding_do_not_matter() -> None:
    student, teacher = noise(5, 3), noise(5, 7)
    turned = student * (torch.rand(5, 1, dtype=torch.float64) + 0.5) @ torch.linalg.qr(noise(3, 3))[0]
    assert transfer(turned, teacher).item() == pytest.approx(transfer(student, teacher).item())


def test_an_image_is_not_its_own_neighbour() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert torch.allclose(neighbours(cosine(x))[1], torch.tensor([0.5, 0.5]))
    assert torch.allclose(neighbours(cosine(x))[0], torch.tensor([1.0, 0.0]), atol=1e-6)


def test_opposite_embeddings_have_a_finite_gradient() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = transfer(student, torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]))
    torch.autograd.backward(value)
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(4, 3).requires_grad_(), noise(4, 2)
    assert torch.autograd.gradcheck(lambda s: transfer(s, teacher), (student,))


@pytest.mark.parametrize("n", [1, 2])
def test_a_batch_of_one_or_two_images_has_nothing_to_learn(n: int) -> None:
    student = noise(n, 3).requires_grad_()
    value = transfer(student, noise(n, 4))
    torch.autograd.backward(value)
    assert value.item() == 0
