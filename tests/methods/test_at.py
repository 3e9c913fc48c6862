from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from world import method_on_maps, noise

from pipeline.functional import attention_difference as difference
from pipeline.methods.at import AttentionTransfer

made = partial(method_on_maps, AttentionTransfer)


def slow_attention(image: list[list[list[float]]]) -> list[float]:
    """Of one map, C x H x W."""
    height, width = len(image[0]), len(image[0][0])
    q = [
        sum(channel[y][x] ** 2 for channel in image) / len(image) for y in range(height) for x in range(width)
    ]
    length = sum(value**2 for value in q) ** 0.5
    return [value / length for value in q]


def slow_difference(student: Tensor, teacher: Tensor) -> float:
    pairs = [
        (slow_attention(s), slow_attention(t))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    errors = [(a - b) ** 2 for q_s, q_t in pairs for a, b in zip(q_s, q_t, strict=True)]
    return sum(errors) / len(errors)


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student = {"stem": noise(3, 2, 4, 4), "stage1": noise(3, 2, 4, 4), "stage2": noise(3, 5, 2, 3)}
    teacher = {"stem": noise(3, 2, 4, 4), "stage1": noise(3, 3, 4, 4), "stage2": noise(3, 7, 2, 3)}
    method, step = made(student, teacher)
    slow = sum(slow_difference(student[name], teacher[name]) for name in ("stage1", "stage2"))
    assert method.terms(step)["attention"].item() == pytest.approx(slow, rel=1e-9)


def test_maps_of_different_size_are_pooled_to_the_smaller_one() -> None:
    student, teacher = noise(2, 3, 2, 2), noise(2, 4, 4, 4)
    pooled = F.avg_pool2d(teacher, 2)
    assert difference(student, teacher).item() == pytest.approx(slow_difference(student, pooled), rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = noise(2, 3, 4, 4)
    assert difference(same, same).item() == 0


def test_sign_scale_and_order_of_channels_do_not_matter() -> None:
    student, teacher = noise(2, 3, 4, 4), noise(2, 4, 4, 4)
    assert difference(-3 * student.flip(1), teacher).item() == pytest.approx(
        difference(student, teacher).item()
    )


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(2, 3, 2, 2).requires_grad_(), noise(2, 4, 3, 3)
    assert torch.autograd.gradcheck(lambda s: difference(s, teacher), (student,))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (5, 1, 1, 1)])
def test_one_image_or_one_position_is_enough(shape: tuple[int, ...]) -> None:
    student = noise(*shape).requires_grad_()
    value = difference(student, noise(*shape))
    torch.autograd.backward(value)
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_map_of_zeros_has_no_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    torch.autograd.backward(difference(student, torch.randn(2, 3, 4, 4)))
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_the_named_maps_are_matched() -> None:
    shown = {name: noise(2, 1, 4, 4) for name in ("stem", "stage1", "stage2", "stage3")}
    assert made(shown, shown)[0].pairs == [(name, name) for name in ("stage1", "stage2", "stage3")]
    named, _ = made(shown, shown, student_maps=("stem", "stage2"), teacher_maps=("stage1", "stage3"))
    assert named.pairs == [("stem", "stage1"), ("stage2", "stage3")]
