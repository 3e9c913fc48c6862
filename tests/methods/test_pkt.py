import math

import pytest
import torch
from torch import Tensor
from world import World

from pipeline.neighbours import cosine, neighbours, transfer


def embeddings(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def slow_probabilities(x: list[list[float]]) -> list[list[float]]:
    def kernel(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return (dot / (sum(p * p for p in a) * sum(q * q for q in b)) ** 0.5 + 1) / 2

    rows = [[kernel(a, b) for j, b in enumerate(x) if j != i] for i, a in enumerate(x)]
    return [[value / sum(row) for value in row] for row in rows]


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = embeddings(5, 3), embeddings(5, 7)
    pairs = [
        (p_s, p_t)
        for row_s, row_t in zip(slow_probabilities(student.tolist()), slow_probabilities(teacher.tolist()), strict=True)
        for p_s, p_t in zip(row_s, row_t, strict=True)
    ]
    assert transfer(student, teacher).item() == pytest.approx(sum(t * math.log(t / s) for s, t in pairs) / len(pairs), rel=1e-9)


def test_the_method_compares_pooled_embeddings() -> None:
    world = World.make()
    step = world.step()
    terms = world.method("pkt").terms(step)
    assert terms["neighbours"].item() == transfer(step.student.pooled, step.teacher.pooled).item()


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = embeddings(5, 3)
    assert transfer(same, same).item() == 0


def test_it_is_never_negative() -> None:
    assert all(transfer(embeddings(6, 3), embeddings(6, 4)) > 0 for _ in range(20))


def test_the_length_of_each_embedding_and_rotation_do_not_matter() -> None:
    student, teacher = embeddings(5, 3), embeddings(5, 7)
    turned = student * (torch.rand(5, 1, dtype=torch.float64) + 0.5) @ torch.linalg.qr(embeddings(3, 3))[0]
    assert transfer(turned, teacher).item() == pytest.approx(transfer(student, teacher).item())


def test_an_instance_is_not_its_own_neighbour() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert torch.allclose(neighbours(cosine(x))[1], torch.tensor([0.5, 0.5]))
    assert torch.allclose(neighbours(cosine(x))[0], torch.tensor([1.0, 0.0]), atol=1e-6)


def test_opposite_embeddings_are_fine() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = transfer(student, torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_gradcheck() -> None:
    student, teacher = embeddings(4, 3).requires_grad_(), embeddings(4, 2)
    assert torch.autograd.gradcheck(lambda s: transfer(s, teacher), (student,))


@pytest.mark.parametrize("n", [1, 2])
def test_without_two_neighbours_there_is_nothing_to_learn(n: int) -> None:
    student = embeddings(n, 3).requires_grad_()
    value = transfer(student, embeddings(n, 4))
    value.backward()
    assert value.item() == 0
