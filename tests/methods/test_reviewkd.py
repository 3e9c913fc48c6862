import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from world import World, maps, noise

from pipeline.methods.reviewkd import Config, Fusion, KnowledgeReview, Norm, context_loss
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

Map = np.ndarray  # B x C x H x W


def answer(shown: dict[str, Tensor], pooled: Tensor, before: dict[str, Tensor] | None = None) -> Answer:
    return Answer(torch.zeros(len(pooled), 2), shown, pooled, before or {})


def made(student: Answer, teacher: Answer, **settings: Any) -> tuple[KnowledgeReview, Step]:
    """The method in float64, and the last step of a phase."""
    size = len(student.pooled)
    step = Step.of(
        student=student, teacher=teacher, labels=torch.zeros(size).long(), index=torch.arange(size)
    )
    step.progress = 1.0
    cfg = Config(name="reviewkd", **settings)
    return KnowledgeReview(cfg, step, torch.zeros(2)).double(), step


def fusions(method: KnowledgeReview) -> list[Fusion]:
    return [fusion for fusion in method.fusions if isinstance(fusion, Fusion)]


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def convolution(x: Map, w: np.ndarray) -> Map:
    """Of one cell after the other; beyond the edge the map is 0."""
    reach = w.shape[2] // 2
    out = np.zeros((len(x), len(w), *x.shape[2:]))
    for y, z in itertools.product(range(x.shape[2]), range(x.shape[3])):
        for dy, dz in itertools.product(range(-reach, reach + 1), repeat=2):
            if 0 <= y + dy < x.shape[2] and 0 <= z + dz < x.shape[3]:
                out[:, :, y, z] += x[:, :, y + dy, z + dz] @ w[:, :, dy + reach, dz + reach].T
    return out


def normalised(x: Map, scale: np.ndarray, shift: np.ndarray) -> Map:
    out = np.zeros_like(x)
    for c in range(x.shape[1]):
        numbers = x[:, c].flatten()
        mean = sum(numbers) / len(numbers)
        variance = sum((v - mean) ** 2 for v in numbers) / len(numbers)
        out[:, c] = scale[c] * (x[:, c] - mean) / (variance + 1e-5) ** 0.5 + shift[c]
    return out


def pooled_to(x: Map, side: int) -> Map:
    step = x.shape[2] // side
    out = np.zeros((*x.shape[:2], side, side))
    for y, z in itertools.product(range(side), repeat=2):
        for dy, dz in itertools.product(range(step), repeat=2):
            out[:, :, y, z] += x[:, :, step * y + dy, step * z + dz] / step**2
    return out


def slow_context_loss(student: Map, teacher: Map) -> float:
    total, whole, weight = ((student - teacher) ** 2).mean(), 1.0, 1.0
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weight /= 2
            whole += weight
            total += weight * ((pooled_to(student, side) - pooled_to(teacher, side)) ** 2).mean()
    return float(total / whole)


def slow_review(method: KnowledgeReview, students: list[Map], teachers: list[Map]) -> float:
    """`students` and `teachers` from deep to shallow."""
    total, review = 0.0, None
    for fusion, student, teacher in zip(fusions(method), students, teachers, strict=True):
        w = weights(fusion)
        x = normalised(convolution(student, w["first.0.weight"]), w["first.1.weight"], w["first.1.bias"])
        if review is not None:
            times = x.shape[2] // review.shape[2]
            review = review.repeat(times, axis=2).repeat(times, axis=3)
            scores = convolution(np.concatenate([x, review], 1), w["attention.0.weight"])
            gates = 1 / (1 + np.exp(-(scores + w["attention.0.bias"][:, None, None])))
            x = gates[:, :1] * x + gates[:, 1:] * review
        review = x
        result = normalised(convolution(x, w["last.0.weight"]), w["last.1.weight"], w["last.1.bias"])
        side = min(result.shape[2], teacher.shape[2])
        total += slow_context_loss(pooled_to(result, side), pooled_to(teacher, side))
    return total


@pytest.mark.parametrize("side", [4, 2, 8])
def test_the_term_equals_the_slow_loop(side: int) -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 8, 8), (2, 4, 4, 4)), maps((2, 2, 8, 8), (2, 5, side, side))
    ends, other_ends = noise(2, 6), noise(2, 3)
    before = {"stage2": noise(2, 5, side, side)}
    method, step = made(answer(student, ends, student), answer(teacher, other_ends, before))
    for parameter in method.parameters():
        nn.init.normal_(parameter)
    students = [ends[:, :, None, None], student["stage2"], student["stage1"]]
    teachers = [other_ends[:, :, None, None], before["stage2"], teacher["stage1"]]
    expected = slow_review(method, *([each.numpy() for each in level] for level in (students, teachers)))
    assert method.terms(step)["review"].item() == pytest.approx(expected, rel=1e-9)


def test_the_layers_are_those_of_the_paper() -> None:
    shown = answer(maps((2, 3, 8, 8), (2, 4, 4, 4)), noise(2, 6))
    method, _ = made(shown, answer(maps((2, 7, 8, 8), (2, 8, 4, 4)), noise(2, 9)))
    shapes = [{name: value.shape for name, value in weights(fusion).items()} for fusion in fusions(method)]
    norm = {"first.1.weight": (6,), "first.1.bias": (6,)}
    attention = {"attention.0.weight": (2, 12, 1, 1), "attention.0.bias": (2,)}
    for found, (student, teacher) in zip(shapes, ((6, 9), (4, 8), (3, 7)), strict=True):
        of_teacher = {"last.1.weight": (teacher,), "last.1.bias": (teacher,)}
        convolutions = {"first.0.weight": (6, student, 1, 1), "last.0.weight": (teacher, 6, 3, 3)}
        assert found == norm | of_teacher | convolutions | (attention if student != 6 else {})
    wide, _ = made(answer(maps((2, 3, 2, 2)), noise(2, 600)), shown, student_maps=["stage1"])
    assert fusions(wide)[0].first[0].weight.shape == (512, 600, 1, 1)


def test_every_difference_counts_at_each_size_and_a_pattern_at_the_full_size_alone() -> None:
    teacher = noise(2, 3, 8, 8)
    assert context_loss(teacher + 3, teacher).item() == pytest.approx(9)
    signs = (-1.0) ** torch.arange(8)
    assert context_loss(teacher + 3 * signs, teacher).item() == pytest.approx(9 / 1.875)
    small = teacher[:, :, :2, :2]
    assert context_loss(small + 3 * signs[:2], small).item() == pytest.approx(9 / 1.5)
    one = teacher[:, :, :1, :1]
    assert context_loss(one + 3, one).item() == pytest.approx(9)


def test_the_review_of_a_shallow_map_reads_all_deeper_ones() -> None:
    torch.manual_seed(0)
    student, ends = maps((2, 3, 8, 8), (2, 4, 4, 4)), noise(2, 6)
    read = [*student.values(), ends]
    for each in read:
        each.requires_grad_()
    method, _ = made(answer(student, ends), answer(maps((2, 2, 8, 8), (2, 5, 4, 4)), noise(2, 3)))
    review, reached = None, []
    for fusion, each in zip(
        fusions(method), (ends[:, :, None, None], *reversed(student.values())), strict=True
    ):
        review, result = fusion(each, review)
        found = torch.autograd.grad(result.square().sum(), read, retain_graph=True, allow_unused=True)
        reached.append([gradient is not None for gradient in found])
    assert reached == [[False, False, True], [False, True, True], [True, True, True]]


def test_the_maps_of_a_network_are_matched_from_deep_to_shallow_with_the_embedding() -> None:
    method = World.make().method("reviewkd")
    assert method.pairs == [*((name, name) for name in ("stage1", "stage2", "stage3")), ("pooled", "pooled")]


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    student, ends = maps((2, 2, 2, 2)), noise(2, 2).requires_grad_()
    teacher = answer(maps((2, 2, 2, 2)), noise(2, 2))
    method, _ = made(answer(student, ends), teacher)

    def review(shown: Tensor, ends: Tensor, *_: Tensor) -> Tensor:
        step = made(answer({"stage1": shown}, ends), teacher)[1]
        return method.terms(step)["review"]

    inputs = (student["stage1"].requires_grad_(), ends, *method.parameters())
    assert torch.autograd.gradcheck(review, inputs, atol=1e-4)


def test_a_batch_of_one_image_trains_with_the_running_statistics() -> None:
    student, ends = maps((1, 3, 4, 4)), noise(1, 6)
    method, step = made(answer(student, ends), answer(maps((1, 2, 4, 4)), noise(1, 3)))
    value = method.train().terms(step)["review"]
    torch.autograd.backward(value)
    assert value.isfinite()
    norm, x = Norm(3).double(), noise(1, 3, 1, 1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.constant_(norm.running_mean, 1.0)
    nn.init.constant_(norm.running_var, 4.0)
    torch.testing.assert_close(norm(x), (x - 1) / (4 + norm.eps) ** 0.5)
    assert norm.running_mean.tolist() == [1, 1, 1]


def test_the_named_maps_are_matched() -> None:
    shown = answer(maps((2, 1, 4, 4), (2, 2, 4, 4), (2, 3, 2, 2)), noise(2, 4))
    method, _ = made(shown, shown, student_maps=("stage1",), teacher_maps=("stage2",))
    assert method.pairs == [("stage1", "stage2"), ("pooled", "pooled")]


@pytest.mark.parametrize("warm_up", [-0.1, 1.1])
def test_a_warm_up_outside_of_the_phase_is_refused(warm_up: float) -> None:
    shown = answer(maps((2, 1, 4, 4)), noise(2, 4))
    with pytest.raises(ValueError, match=r"warm_up\n.*(greater|less) than or equal to"):
        made(shown, shown, warm_up=warm_up)
