import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.methods.irg import InstanceRelationshipGraph, edges
from pipeline.taps import Step, View

STAGES = ("stem", "stage1", "stage2")


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def view(n: int, width: int, size: int, pooled: int) -> View:
    return View(torch.zeros(n, 2), {name: maps(n, width, size, size) for name in STAGES}, maps(n, pooled), {})


def made(student: View, teacher: View, **settings: Any) -> tuple[InstanceRelationshipGraph, Step]:
    n = len(student.logits)
    step = Step.of(student=student, teacher=teacher, labels=torch.zeros(n).long(), index=torch.arange(n))
    return InstanceRelationshipGraph(InstanceRelationshipGraph.Config(name="irg", **settings), step, torch.zeros(2)).double(), step


def terms(student: View, teacher: View) -> dict[str, float]:
    method, step = made(student, teacher)
    return {name: value.item() for name, value in method.terms(step).items()}


def slow_edges(layer: Tensor) -> list[list[float]]:
    x = layer.flatten(1).tolist()
    distances = [[math.dist(a, b) ** 2 for b in x] for a in x]
    mean = sum(map(sum, distances)) / (len(x) * (len(x) - 1))
    return [[d / mean for d in row] for row in distances]


def slow_norm(a: list[list[float]], b: list[list[float]]) -> float:
    return sum((p - q) ** 2 for row_a, row_b in zip(a, b, strict=True) for p, q in zip(row_a, row_b, strict=True)) / len(a)


def slow_change(shallow: Tensor, deep: Tensor) -> list[list[float]]:
    return [[q - p for p, q in zip(*rows, strict=True)] for rows in zip(slow_edges(shallow), slow_edges(deep), strict=True)]


def test_the_terms_equal_the_slow_loops() -> None:
    torch.manual_seed(0)
    student, teacher = view(4, 2, 2, 3), view(4, 3, 3, 3)
    found = terms(student, teacher)
    assert found["vertices"] == pytest.approx(slow_norm(student.pooled.tolist(), teacher.pooled.tolist()), rel=1e-9)
    assert found["edges"] == pytest.approx(slow_norm(slow_edges(student.pooled), slow_edges(teacher.pooled)), rel=1e-9)
    layers_s, layers_t = ([v.stages["stage1"], v.stages["stage2"], v.pooled] for v in (student, teacher))
    changes = [slow_norm(slow_change(*layers_s[n : n + 2]), slow_change(*layers_t[n : n + 2])) for n in (0, 1)]
    assert found["change"] == pytest.approx(sum(changes), rel=1e-9)


def test_narrower_vertices_go_through_a_learned_map() -> None:
    student, teacher = view(4, 2, 2, 3), view(4, 3, 3, 5)
    method, step = made(student, teacher)
    assert isinstance(method.widen, nn.Linear)
    widened = [[sum(w * v for w, v in zip(row, x, strict=True)) for row in method.widen.weight.tolist()] for x in student.pooled.tolist()]
    assert method.terms(step)["vertices"].item() == pytest.approx(slow_norm(widened, teacher.pooled.tolist()), rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = view(4, 2, 2, 3)
    assert terms(same, same) == {"vertices": 0, "edges": 0, "change": 0}


def test_edges_do_not_see_shift_scale_and_rotation() -> None:
    x = maps(4, 3)
    assert torch.allclose(edges(5 * x @ torch.linalg.qr(maps(3, 3))[0] + maps(3)), edges(x))


def test_gradcheck() -> None:
    student, teacher = view(3, 2, 2, 3), view(3, 3, 2, 4)
    method, step = made(student, teacher)

    def every(pooled: Tensor, *stages: Tensor) -> tuple[Tensor, ...]:
        seen = View(student.logits, dict(zip(STAGES, stages, strict=True)), pooled, {})
        return tuple(method.terms(Step.of(student=seen, teacher=teacher, labels=step.labels, index=step.index)).values())

    assert torch.autograd.gradcheck(every, (student.pooled.requires_grad_(), *(s.requires_grad_() for s in student.stages.values())))


@pytest.mark.parametrize("n", [1, 2])
def test_one_instance_has_no_edges_and_two_have_equal_ones(n: int) -> None:
    student, teacher = view(n, 2, 2, 3), view(n, 3, 2, 3)
    student.pooled.requires_grad_()
    method, step = made(student, teacher)
    found = method.terms(step)
    torch.stack(list(found.values())).sum().backward()
    assert found["edges"].item() == pytest.approx(0, abs=1e-20)
    assert found["change"].item() == pytest.approx(0, abs=1e-20)
    assert student.pooled.grad is not None
    assert student.pooled.grad.isfinite().all()


def test_instances_at_the_same_place_give_finite_gradients() -> None:
    torch.manual_seed(0)
    for x in (torch.randn(1, 32).repeat(5, 1), torch.cat([torch.randn(1, 32).repeat(3, 1), torch.randn(2, 32)]) + 100):
        x.requires_grad_()
        (edges(x) - edges(torch.randn(5, 32))).pow(2).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().max() < 100


def test_float32_is_near_to_float64_far_from_the_origin() -> None:
    x = maps(8, 32) + 1000
    assert torch.allclose(edges(x.float()).double(), edges(x), atol=1e-3)


def test_stages_are_paired_from_the_deepest_unless_they_are_named() -> None:
    student, teacher = view(2, 1, 2, 3), view(2, 1, 2, 3)
    teacher.stages["stage3"] = maps(2, 1, 2, 2)
    assert made(student, teacher)[0].pairs == [("stage1", "stage2"), ("stage2", "stage3"), ("pooled", "pooled")]
    assert made(student, teacher, student_stages=("stem",))[0].pairs == [("stem", "stage3"), ("pooled", "pooled")]


def test_stages_that_are_not_there_or_have_no_partner_are_refused() -> None:
    student, teacher = view(2, 1, 2, 3), view(2, 1, 2, 3)
    with pytest.raises(ValueError, match=r"method\.teacher_stages: there is no 'stage9'. Did you mean 'stage2'"):
        made(student, teacher, teacher_stages=("stage9",))
    with pytest.raises(ValueError, match=r"method\.student_stages names 3 stages, but there are 2 in the other"):
        made(student, teacher, student_stages=STAGES)
