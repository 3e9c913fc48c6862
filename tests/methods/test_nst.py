from typing import Any

import pytest
import torch
from torch import Tensor
from world import step_of_maps

from pipeline.methods.nst import NeuronSelectivity, discrepancy
from pipeline.taps import Step


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def made(student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any) -> tuple[NeuronSelectivity, Step]:
    step = step_of_maps(student, teacher)
    return NeuronSelectivity(NeuronSelectivity.Config(name="nst", **settings), step, torch.zeros(2)), step


def slow_discrepancy(student: Tensor, teacher: Tensor) -> float:
    def samples(channels: list[list[float]]) -> list[list[float]]:
        return [[value / sum(v * v for v in channel) ** 0.5 for value in channel] for channel in channels]

    def mean_kernel(xs: list[list[float]], ys: list[list[float]]) -> float:
        kernels = [sum(p * q for p, q in zip(x, y, strict=True)) ** 2 for x in xs for y in ys]
        return sum(kernels) / len(kernels)

    total = 0.0
    for s, t in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        x, y = samples(s), samples(t)
        total += mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    return total / len(student)


MANY_POSITIONS = ((3, 2, 4, 4), (3, 3, 4, 4))
MANY_CHANNELS = ((3, 7, 2, 2), (3, 5, 2, 2))
both_roads = pytest.mark.parametrize(("narrow", "wide"), [MANY_POSITIONS, MANY_CHANNELS], ids=["channels", "positions"])


@both_roads
def test_a_stage_equals_the_slow_loop(narrow: tuple[int, ...], wide: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, teacher = maps(*narrow), maps(*wide)
    assert discrepancy(student, teacher).item() == pytest.approx(slow_discrepancy(student, teacher), rel=1e-9)


def test_the_term_is_the_sum_over_all_stages_but_the_stem() -> None:
    student = {"stem": maps(2, 2, 4, 4), "stage1": maps(2, 2, 4, 4), "stage2": maps(2, 5, 2, 2)}
    teacher = {"stem": maps(2, 2, 4, 4), "stage1": maps(2, 3, 4, 4), "stage2": maps(2, 7, 2, 2)}
    method, step = made(student, teacher)
    slow = sum(slow_discrepancy(student[name], teacher[name]) for name in ("stage1", "stage2"))
    assert method.terms(step)["selectivity"].item() == pytest.approx(slow, rel=1e-9)


def test_maps_of_different_size_meet_at_the_smaller_one() -> None:
    student, teacher = maps(2, 3, 2, 2), maps(2, 4, 4, 4)
    pooled = torch.stack([teacher[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)], 2).view(2, 4, 2, 2)
    assert discrepancy(student, teacher).item() == pytest.approx(slow_discrepancy(student, pooled), rel=1e-9)


@both_roads
def test_equal_sets_of_channels_have_no_discrepancy(narrow: tuple[int, ...], wide: tuple[int, ...]) -> None:
    same = maps(*narrow)
    assert discrepancy(same, same).item() == pytest.approx(0, abs=1e-12)
    assert discrepancy(same, same.flip(1).repeat(1, 2, 1, 1) * 3).item() == pytest.approx(0, abs=1e-12)


@both_roads
def test_gradcheck(narrow: tuple[int, ...], wide: tuple[int, ...]) -> None:
    student, teacher = maps(*narrow).requires_grad_(), maps(*wide)
    assert torch.autograd.gradcheck(lambda s: discrepancy(s, teacher), (student,))


def test_one_instance_and_dead_channels_are_fine() -> None:
    for shape in ((1, 2, 4, 4), (1, 9, 2, 2)):
        student = torch.randn(shape)
        student[:, 0] = 0
        student.requires_grad_()
        value = discrepancy(student, torch.randn(shape))
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.abs().max() < 10


def test_stages_are_paired_from_the_deepest_unless_they_are_named() -> None:
    two = {"stem": maps(2, 1, 4, 4), "stage1": maps(2, 1, 4, 4), "stage2": maps(2, 1, 2, 2)}
    three = two | {"stage3": maps(2, 1, 2, 2)}
    assert made(two, three)[0].pairs == [("stage1", "stage2"), ("stage2", "stage3")]
    assert made(two, three, student_stages=("stage1",), teacher_stages=("stem",))[0].pairs == [("stage1", "stem")]


def test_stages_that_are_not_there_or_have_no_partner_are_refused() -> None:
    stages = {name: maps(2, 1, 4, 4) for name in ("stem", "stage1", "stage2")}
    with pytest.raises(ValueError, match=r"method\.student_stages: there is no 'stage9'. Did you mean 'stage2'"):
        made(stages, stages, student_stages=("stage9",))
    with pytest.raises(ValueError, match=r"method\.teacher_stages names 3 stages, but there are 2 in the other"):
        made(stages, stages, teacher_stages=("stem", "stage1", "stage2"))
    with pytest.raises(ValueError, match=r"shows no stage.*taps"):
        made(stages, {})
