import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import World, maps, method_on_maps, of_kind, step_of_maps

from pipeline.methods.vid import SMALLEST_VARIANCE, Gaussian, VariationalInformation
from pipeline.training.recipe import TrainConfig

made = partial(method_on_maps, VariationalInformation)


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 4, 4), (2, 2, 2, 2)), maps((2, 4, 2, 2), (2, 3, 4, 4))
    method, step = made(student, teacher)
    expected = 0.0
    for name, gaussian in zip(student, of_kind(Gaussian, method.gaussians), strict=True):
        s, t = (F.avg_pool2d(x, x.shape[2] // 2).tolist() for x in (student[name], teacher[name]))
        nn.init.normal_(gaussian.raw)
        assert gaussian.mean.bias is not None
        w, bias, raw = gaussian.mean.weight.tolist(), gaussian.mean.bias.tolist(), gaussian.raw.tolist()
        values = []
        for b in range(2):
            for c in range(len(w)):
                variance = math.log1p(math.exp(raw[c])) + 1e-5
                for y in range(2):
                    for x in range(2):
                        mean = bias[c] + sum(w[c][k][0][0] * s[b][k][y][x] for k in range(len(s[b])))
                        values.append(0.5 * (math.log(variance) + (t[b][c][y][x] - mean) ** 2 / variance))
        expected += sum(values) / len(values)
    assert method.terms(step)["surprise"].item() == pytest.approx(expected, rel=1e-9)


def test_variances_start_at_the_value_of_the_setting() -> None:
    method, _ = made(maps((2, 3, 2, 2)), maps((2, 4, 2, 2)), initial_variance=0.3)
    assert of_kind(Gaussian, method.gaussians)[0].variance().tolist() == pytest.approx([0.3] * 4, rel=1e-5)
    method, _ = made(maps((2, 3, 2, 2)), maps((2, 4, 2, 2)))
    assert of_kind(Gaussian, method.gaussians)[0].variance().tolist() == pytest.approx([5.0] * 4, rel=1e-5)


def test_a_perfect_mean_has_half_the_log_of_the_variance_as_its_term() -> None:
    same = maps((2, 3, 2, 2))
    method, step = made(same, same)
    conv = of_kind(Gaussian, method.gaussians)[0].mean
    assert conv.bias is not None
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    assert method.terms(step)["surprise"].item() == pytest.approx(math.log(5) / 2, rel=1e-5)


def test_the_best_variance_of_a_channel_is_its_mean_squared_error() -> None:
    torch.manual_seed(0)
    student, teacher = maps((4, 3, 2, 2)), maps((4, 2, 2, 2))
    method, step = made(student, teacher)
    gaussian = of_kind(Gaussian, method.gaussians)[0]
    errors = (gaussian.mean(student["stage1"]) - teacher["stage1"]).square().mean((0, 2, 3)).detach()
    gaussian.raw.data = (errors - SMALLEST_VARIANCE).expm1().log()
    torch.autograd.backward(method.terms(step)["surprise"])
    assert gaussian.raw.grad is not None
    assert gaussian.raw.grad.abs().max() < 1e-12


def test_training_moves_the_variances_towards_the_errors() -> None:
    world = World.make()
    method = world.method("vid")
    assert isinstance(method, VariationalInformation)
    world.fit(method, cfg=TrainConfig(epochs=2, batch_size=8, lr=0.05, schedule="constant", optimizer="adam"))
    for gaussian in of_kind(Gaussian, method.gaussians):
        assert (gaussian.variance() - 5).abs().min() > 1e-3
        assert gaussian.variance().median() < 4.9  # most errors are below 1


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = maps((2, 3, 2, 2), (2, 2, 1, 1)), maps((2, 2, 2, 2), (2, 2, 2, 2))
    method, _ = made(student, teacher)
    inputs = [x.requires_grad_() for x in student.values()]

    def surprise(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return method.terms(step_of_maps({"stage1": first, "stage2": second}, teacher))["surprise"]

    assert torch.autograd.gradcheck(
        surprise, (*inputs, *(gaussian.raw for gaussian in of_kind(Gaussian, method.gaussians)))
    )


def test_one_image_of_one_channel_is_enough() -> None:
    method, step = made(maps((1, 1, 1, 1)), maps((1, 1, 3, 3)))
    assert method.terms(step)["surprise"].isfinite()
