import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world import noise

from pipeline.methods.irg import Config, InstanceRelationshipGraph, edges
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

MAPS = ("stem", "stage1", "stage2")


def answer(images: int, width: int, size: int, pooled: int) -> Answer:
    maps = {name: noise(images, width, size, size) for name in MAPS}
    return Answer(torch.zeros(images, 2), maps, noise(images, pooled), {})


def made(student: Answer, teacher: Answer, **settings: Any) -> tuple[InstanceRelationshipGraph, Step]:
    n = len(student.logits)
    step = Step.of(student=student, teacher=teacher, labels=torch.zeros(n).long(), index=torch.arange(n))
    method = InstanceRelationshipGraph(Config(name="irg", **settings), step, torch.zeros(2))
    return method.double(), step


def terms(student: Answer, teacher: Answer) -> dict[str, float]:
    method, step = made(student, teacher)
    return {name: value.item() for name, value in method.terms(step).items()}


def slow_edges(layer: Tensor) -> list[list[float]]:
    x = layer.flatten(1).tolist()
    distances = [[math.dist(a, b) ** 2 for b in x] for a in x]
    mean = sum(map(sum, distances)) / (len(x) * (len(x) - 1))
    return [[d / mean for d in row] for row in distances]


def slow_norm(a: list[list[float]], b: list[list[float]]) -> float:
    return sum(
        (p - q) ** 2 for row_a, row_b in zip(a, b, strict=True) for p, q in zip(row_a, row_b, strict=True)
    ) / len(a)


def slow_change(shallow: Tensor, deep: Tensor) -> list[list[float]]:
    return [
        [q - p for p, q in zip(*rows, strict=True)]
        for rows in zip(slow_edges(shallow), slow_edges(deep), strict=True)
    ]


def test_the_terms_equal_the_slow_loops() -> None:
    torch.manual_seed(0)
    student, teacher = answer(4, 2, 2, 3), answer(4, 3, 3, 3)
    values = terms(student, teacher)
    vertices = slow_norm(student.pooled.tolist(), teacher.pooled.tolist())
    assert values["vertices"] == pytest.approx(vertices, rel=1e-9)
    pooled = slow_norm(slow_edges(student.pooled), slow_edges(teacher.pooled))
    assert values["edges"] == pytest.approx(pooled, rel=1e-9)
    layers_s, layers_t = ([a.maps["stage1"], a.maps["stage2"], a.pooled] for a in (student, teacher))
    changes = [
        slow_norm(slow_change(*layers_s[n : n + 2]), slow_change(*layers_t[n : n + 2])) for n in (0, 1)
    ]
    assert values["change"] == pytest.approx(sum(changes), rel=1e-9)


def test_narrower_vertices_go_through_a_linear_map() -> None:
    student, teacher = answer(4, 2, 2, 3), answer(4, 3, 3, 5)
    method, step = made(student, teacher)
    assert isinstance(method.widen, nn.Linear)
    widened = [
        [sum(w * v for w, v in zip(row, x, strict=True)) for row in method.widen.weight.tolist()]
        for x in student.pooled.tolist()
    ]
    assert method.terms(step)["vertices"].item() == pytest.approx(
        slow_norm(widened, teacher.pooled.tolist()), rel=1e-9
    )


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = answer(4, 2, 2, 3)
    assert terms(same, same) == {"vertices": 0, "edges": 0, "change": 0}


def test_shift_scale_and_rotation_do_not_change_the_edges() -> None:
    x = noise(4, 3)
    assert torch.allclose(edges(5 * x @ torch.linalg.qr(noise(3, 3))[0] + noise(3)), edges(x))


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = answer(3, 2, 2, 3), answer(3, 3, 2, 4)
    method, step = made(student, teacher)

    def all_terms(pooled: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        changed = Answer(student.logits, dict(zip(MAPS, maps, strict=True)), pooled, {})
        changed_step = Step.of(student=changed, teacher=teacher, labels=step.labels, index=step.index)
        return tuple(method.terms(changed_step).values())

    inputs = (student.pooled.requires_grad_(), *(x.requires_grad_() for x in student.maps.values()))
    assert torch.autograd.gradcheck(all_terms, inputs)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_images_have_nothing_to_learn_from_edges(n: int) -> None:
    student, teacher = answer(n, 2, 2, 3), answer(n, 3, 2, 3)
    student.pooled.requires_grad_()
    method, step = made(student, teacher)
    values = method.terms(step)
    torch.autograd.backward(torch.stack(list(values.values())).sum())
    assert values["edges"].item() == pytest.approx(0, abs=1e-20)
    assert values["change"].item() == pytest.approx(0, abs=1e-20)
    assert student.pooled.grad is not None
    assert student.pooled.grad.isfinite().all()


def test_equal_images_have_finite_gradients() -> None:
    torch.manual_seed(0)
    equal = torch.randn(1, 32).repeat(5, 1)
    three_equal = torch.cat([torch.randn(1, 32).repeat(3, 1), torch.randn(2, 32)]) + 100
    for x in (equal, three_equal):
        x.requires_grad_()
        torch.autograd.backward((edges(x) - edges(torch.randn(5, 32))).pow(2).sum())
        assert x.grad is not None
        assert x.grad.abs().max() < 100


def test_float32_is_near_to_float64_far_from_the_origin() -> None:
    x = noise(8, 32) + 1000
    assert torch.allclose(edges(x.float()).double(), edges(x), atol=1e-3)


def test_the_pooled_embeddings_are_the_last_layer() -> None:
    student, teacher = answer(2, 1, 2, 3), answer(2, 1, 2, 3)
    pairs = made(student, teacher)[0].pairs
    assert pairs == [("stage1", "stage1"), ("stage2", "stage2"), ("pooled", "pooled")]
    assert made(student, teacher, student_maps=("stem",))[0].pairs == [
        ("stem", "stage2"),
        ("pooled", "pooled"),
    ]
