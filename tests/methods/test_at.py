from typing import Any

import pytest
import torch
from torch import Tensor
from world import step_of_maps

from pipeline.functional import attention_difference as difference
from pipeline.methods.at import AttentionTransfer
from pipeline.taps import Step


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def made(student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any) -> tuple[AttentionTransfer, Step]:
    step = step_of_maps(student, teacher)
    return AttentionTransfer(AttentionTransfer.Config(name="at", **settings), step, torch.zeros(2)), step


def slow_attention(instance: list[list[list[float]]]) -> list[float]:
    height, width = len(instance[0]), len(instance[0][0])
    q = [sum(channel[y][x] ** 2 for channel in instance) / len(instance) for y in range(height) for x in range(width)]
    length = sum(value**2 for value in q) ** 0.5
    return [value / length for value in q]


def slow_difference(student: Tensor, teacher: Tensor) -> float:
    pairs = [(slow_attention(s), slow_attention(t)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    errors = [(a - b) ** 2 for q_s, q_t in pairs for a, b in zip(q_s, q_t, strict=True)]
    return sum(errors) / len(errors)


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student = {"stem": maps(3, 2, 4, 4), "stage1": maps(3, 2, 4, 4), "stage2": maps(3, 5, 2, 3)}
    teacher = {"stem": maps(3, 2, 4, 4), "stage1": maps(3, 3, 4, 4), "stage2": maps(3, 7, 2, 3)}
    method, step = made(student, teacher)
    slow = sum(slow_difference(student[name], teacher[name]) for name in ("stage1", "stage2"))
    assert method.terms(step)["attention"].item() == pytest.approx(slow, rel=1e-9)


def test_maps_of_different_size_meet_at_the_smaller_one() -> None:
    student, teacher = maps(2, 3, 2, 2), maps(2, 4, 4, 4)
    pooled = torch.stack([teacher[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)], 2).view(2, 4, 2, 2)
    assert difference(student, teacher).item() == pytest.approx(slow_difference(student, pooled), rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = maps(2, 3, 4, 4)
    assert difference(same, same).item() == 0


def test_sign_scale_and_order_of_channels_do_not_matter() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 4, 4, 4)
    assert difference(-3 * student.flip(1), teacher).item() == pytest.approx(difference(student, teacher).item())


def test_gradcheck() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 4, 3, 3)
    assert torch.autograd.gradcheck(lambda s: difference(s, teacher), (student,))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (5, 1, 1, 1)])
def test_one_instance_and_one_position_are_fine(shape: tuple[int, ...]) -> None:
    student = maps(*shape).requires_grad_()
    value = difference(student, maps(*shape))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_map_that_is_zero_everywhere_gives_no_endless_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    difference(student, torch.randn(2, 3, 4, 4)).backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_the_deepest_stages_meet_where_there_are_too_many() -> None:
    two = {"stem": maps(2, 1, 4, 4), "stage1": maps(2, 1, 4, 4), "stage2": maps(2, 1, 2, 2)}
    three = two | {"stage3": maps(2, 1, 2, 2)}
    assert made(two, two)[0].pairs == [("stage1", "stage1"), ("stage2", "stage2")]
    assert made(two, three)[0].pairs == [("stage1", "stage2"), ("stage2", "stage3")]
    assert made(three, two)[0].pairs == [("stage2", "stage1"), ("stage3", "stage2")]


def test_named_stages_are_the_ones_that_meet() -> None:
    stages = {name: maps(2, 1, 4, 4) for name in ("stem", "stage1", "stage2", "stage3")}
    method, _ = made(stages, stages, student_stages=("stem", "stage2"), teacher_stages=("stage1", "stage3"))
    assert method.pairs == [("stem", "stage1"), ("stage2", "stage3")]
    assert made(stages, stages, student_stages=("stage1",))[0].pairs == [("stage1", "stage3")]


def test_stages_that_are_not_there_or_have_no_partner_are_refused() -> None:
    stages = {name: maps(2, 1, 4, 4) for name in ("stem", "stage1", "stage2")}
    with pytest.raises(ValueError, match=r"method\.teacher_stages: there is no 'stage9'. Did you mean 'stage2'"):
        made(stages, stages, teacher_stages=("stage9",))
    with pytest.raises(ValueError, match=r"method\.student_stages names 2 stages, but there are 1 in the other"):
        made(stages, stages, student_stages=("stage1", "stage2"), teacher_stages=("stage2",))
    with pytest.raises(ValueError, match=r"shows no stage.*taps"):
        made({"stem": stages["stem"]}, stages)
