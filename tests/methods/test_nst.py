from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from world import method_on_maps, noise

from pipeline.methods.nst import NeuronSelectivity, discrepancy

made = partial(method_on_maps, NeuronSelectivity)


def slow_discrepancy(student: Tensor, teacher: Tensor) -> float:
    def scaled(channels: list[list[float]]) -> list[list[float]]:
        return [[value / sum(v * v for v in channel) ** 0.5 for value in channel] for channel in channels]

    def mean_kernel(xs: list[list[float]], ys: list[list[float]]) -> float:
        kernels = [sum(p * q for p, q in zip(x, y, strict=True)) ** 2 for x in xs for y in ys]
        return sum(kernels) / len(kernels)

    total = 0.0
    for s, t in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        x, y = scaled(s), scaled(t)
        total += mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    return total / len(student)


MANY_POSITIONS = ((3, 2, 4, 4), (3, 3, 4, 4))
MANY_CHANNELS = ((3, 7, 2, 2), (3, 5, 2, 2))
# the Gram matrix of the channels is computed if there are many positions, otherwise that of the positions
both_forms = pytest.mark.parametrize(
    ("narrow", "wide"), [MANY_POSITIONS, MANY_CHANNELS], ids=["channels", "positions"]
)


@both_forms
def test_the_discrepancy_equals_the_slow_loop(narrow: tuple[int, ...], wide: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, teacher = noise(*narrow), noise(*wide)
    assert discrepancy(student, teacher).item() == pytest.approx(slow_discrepancy(student, teacher), rel=1e-9)


def test_maps_of_different_size_are_pooled_to_the_smaller_one() -> None:
    student, teacher = noise(2, 3, 2, 2), noise(2, 4, 4, 4)
    pooled = F.avg_pool2d(teacher, 2)
    assert discrepancy(student, teacher).item() == pytest.approx(slow_discrepancy(student, pooled), rel=1e-9)


@both_forms
def test_equal_sets_of_channels_have_no_discrepancy(narrow: tuple[int, ...], wide: tuple[int, ...]) -> None:
    same = noise(*narrow)
    assert discrepancy(same, same).item() == pytest.approx(0, abs=1e-12)
    assert discrepancy(same, same.flip(1).repeat(1, 2, 1, 1) * 3).item() == pytest.approx(0, abs=1e-12)


@both_forms
def test_the_gradient_equals_finite_differences(narrow: tuple[int, ...], wide: tuple[int, ...]) -> None:
    student, teacher = noise(*narrow).requires_grad_(), noise(*wide)
    assert torch.autograd.gradcheck(lambda s: discrepancy(s, teacher), (student,))


def test_one_image_and_channels_of_zeros_have_a_finite_gradient() -> None:
    for shape in ((1, 2, 4, 4), (1, 9, 2, 2)):
        student = torch.randn(shape)
        student[:, 0] = 0
        student.requires_grad_()
        value = discrepancy(student, torch.randn(shape))
        torch.autograd.backward(value)
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.abs().max() < 10


def test_the_term_is_the_sum_over_all_maps_but_the_stem() -> None:
    student = {"stem": noise(2, 2, 4, 4), "stage1": noise(2, 2, 4, 4), "stage2": noise(2, 5, 2, 2)}
    teacher = {"stem": noise(2, 2, 4, 4), "stage1": noise(2, 3, 4, 4), "stage2": noise(2, 7, 2, 2)}
    method, step = made(student, teacher)
    slow = sum(slow_discrepancy(student[name], teacher[name]) for name in ("stage1", "stage2"))
    assert method.terms(step)["selectivity"].item() == pytest.approx(slow, rel=1e-9)
