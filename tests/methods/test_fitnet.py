from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world import World

from pipeline.methods.fitnet import FitNet
from pipeline.taps import Step, View


def view(**stages: Tensor) -> View:
    return View(torch.zeros(len(next(iter(stages.values()))), 2, dtype=torch.float64), stages, torch.zeros(1), {})


def made(student: Tensor, teacher: Tensor, **settings: Any) -> tuple[FitNet, Step]:
    step = Step.of(student=view(only=student), teacher=view(only=teacher), labels=torch.zeros(2).long(), index=torch.arange(2))
    return FitNet(FitNet.Config(name="fitnet", **settings), step, torch.zeros(2)).double(), step


def parts(method: FitNet) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = method.regressor
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return conv, norm


def test_the_hint_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 4, 4, 4, dtype=torch.float64)
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
                    mapped = (mapped - norm.running_mean[c].item()) / (norm.running_var[c].item() + norm.eps) ** 0.5
                    errors.append((mapped * norm.weight[c].item() + norm.bias[c].item() - pooled) ** 2)
    assert method.hint(step).item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


def test_a_regressor_that_reaches_the_hint_leaves_nothing() -> None:
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    method, step = made(student, student)
    conv, norm = parts(method.eval())
    norm.running_var = torch.ones_like(norm.bias) - norm.eps  # the norm passes its input on
    nn.init.dirac_(conv.weight)
    assert method.hint(step).item() == pytest.approx(0, abs=1e-20)


def test_gradcheck() -> None:
    teacher = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    method, _ = made(student.detach(), teacher)
    method.eval()

    def hint(s: Tensor) -> Tensor:
        return method.hint(Step.of(student=view(only=s), teacher=view(only=teacher), labels=torch.zeros(2), index=torch.arange(2)))

    assert torch.autograd.gradcheck(hint, (student,))


def test_the_hint_phase_stops_at_the_guided_stage() -> None:
    world = World.make()
    method = world.method("fitnet", student_stage="stage1")
    trained = {id(p) for module in method.phases(world.student)[0].trains for p in module.parameters()}
    named = dict(world.student.net.named_parameters())
    deep = {name for name in named if "stage2" in world.student.taps and id(named[name]) not in trained}
    assert any(id(p) in trained for p in world.student.net.parameters())
    classifier = f"{world.student.classifier}.weight"
    assert classifier in deep


def test_the_middle_stage_is_meant_unless_another_is_named() -> None:
    world = World.make()
    method = world.method("fitnet")
    assert isinstance(method, FitNet)
    assert method.pairs == [("stage2", "stage2")]


def test_a_stage_that_is_not_there_is_named_with_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"method\.teacher_stage: there is no 'stage9'. Did you mean 'stage3'.*stem"):
        World.make().method("fitnet", teacher_stage="stage9")
