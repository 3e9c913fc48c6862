from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world import World, noise

from pipeline.methods.fitnet import Config, FitNet
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step


def answer(features: Tensor) -> Answer:
    return Answer(torch.zeros(len(features), 2, dtype=torch.float64), {"only": features}, torch.zeros(1), {})


def step_of(student: Tensor, teacher: Tensor) -> Step:
    return Step.of(
        student=answer(student),
        teacher=answer(teacher),
        labels=torch.zeros(2).long(),
        index=torch.arange(2),
    )


def made(student: Tensor, teacher: Tensor, **settings: Any) -> tuple[FitNet, Step]:
    step = step_of(student, teacher)
    return FitNet(Config(name="fitnet", **settings), step, torch.zeros(2)).double(), step


def parts(method: FitNet) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = method.regressor
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return conv, norm


def test_the_hint_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = noise(2, 3, 2, 2), noise(2, 4, 4, 4)
    method, step = made(student, teacher)
    conv, norm = parts(method.eval())
    norm.running_mean, norm.running_var = torch.randn(4).double(), torch.rand(4).double() + 0.5
    s, t, w = student.tolist(), teacher.tolist(), conv.weight.tolist()
    errors = []
    for b in range(2):
        for y in range(2):
            for x in range(2):
                for c in range(4):
                    pooled = sum(t[b][c][2 * y + dy][2 * x + dx] for dy in (0, 1) for dx in (0, 1)) / 4
                    mapped = sum(w[c][k][0][0] * s[b][k][y][x] for k in range(3))
                    mapped = (mapped - norm.running_mean[c].item()) / (
                        norm.running_var[c].item() + norm.eps
                    ) ** 0.5
                    errors.append((mapped * norm.weight[c].item() + norm.bias[c].item() - pooled) ** 2)
    assert method.hint(step).item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


def test_a_regressor_that_gives_the_hint_has_no_error() -> None:
    student = noise(2, 3, 2, 2)
    method, step = made(student, student)
    conv, norm = parts(method.eval())
    norm.running_var = torch.ones_like(norm.bias) - norm.eps  # the norm returns its input
    nn.init.dirac_(conv.weight)
    assert method.hint(step).item() == pytest.approx(0, abs=1e-20)


def test_the_gradient_equals_finite_differences() -> None:
    teacher, student = noise(2, 2, 2, 2), noise(2, 3, 2, 2).requires_grad_()
    method, _ = made(student.detach(), teacher)
    method.eval()
    assert torch.autograd.gradcheck(lambda s: method.hint(step_of(s, teacher)), (student,))


def test_the_hint_phase_trains_no_layer_after_the_guided_map() -> None:
    world = World.make()
    method = world.method("fitnet", student_map="stage1")
    trained = {id(p) for module in method.phases(world.student)[0].trains for p in module.parameters()}
    layers = {name.split(".")[0] for name, p in world.student.net.named_parameters() if id(p) in trained}
    assert layers == {"stem", "stage1"}


def test_the_middle_map_of_each_network_is_the_default() -> None:
    assert World.make().method("fitnet").pairs == [("stage2", "stage2")]
