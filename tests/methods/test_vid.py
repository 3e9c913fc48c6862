import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import World

from pipeline.methods.vid import SMALLEST, Guess, VariationalInformation
from pipeline.taps import Step, View
from pipeline.train import TrainConfig


def step_of(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Step:
    size = len(next(iter(student.values())))
    views = [View(torch.zeros(size, 2, dtype=torch.float64), stages, torch.zeros(size, 1), {}) for stages in (student, teacher)]
    return Step.of(student=views[0], teacher=views[1], labels=torch.zeros(size).long(), index=torch.arange(size))


def made(student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any) -> tuple[VariationalInformation, Step]:
    step = step_of(student, teacher)
    return VariationalInformation(VariationalInformation.Config(name="vid", **settings), step, torch.zeros(2)).double(), step


def guesses(method: VariationalInformation) -> list[Guess]:
    return [guess for guess in method.guesses if isinstance(guess, Guess)]


def maps(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"stage{n}": torch.randn(shape, dtype=torch.float64) for n, shape in enumerate(shapes, start=1)}


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 4, 4), (2, 2, 2, 2)), maps((2, 4, 2, 2), (2, 3, 4, 4))
    method, step = made(student, teacher)
    expected = 0.0
    for n, stage in enumerate(student):
        s, t = (F.avg_pool2d(x, x.shape[2] // 2).tolist() for x in (student[stage], teacher[stage]))
        guess = guesses(method)[n]
        nn.init.normal_(guess.raw)
        assert guess.mean.bias is not None
        w, bias, raw = guess.mean.weight.tolist(), guess.mean.bias.tolist(), guess.raw.tolist()
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


def test_variances_start_where_told() -> None:
    method, _ = made(maps((2, 3, 2, 2)), maps((2, 4, 2, 2)), initial_variance=0.3)
    assert guesses(method)[0].variance().tolist() == pytest.approx([0.3] * 4, rel=1e-5)
    method, _ = made(maps((2, 3, 2, 2)), maps((2, 4, 2, 2)))
    assert guesses(method)[0].variance().tolist() == pytest.approx([5.0] * 4, rel=1e-5)


def test_a_mean_that_is_right_leaves_half_the_log_of_the_variance() -> None:
    same = maps((2, 3, 2, 2))
    method, step = made(same, same)
    conv = guesses(method)[0].mean
    assert conv.bias is not None
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    assert method.terms(step)["surprise"].item() == pytest.approx(math.log(5) / 2, rel=1e-5)


def test_the_best_variance_of_a_channel_is_its_mean_squared_error() -> None:
    torch.manual_seed(0)
    student, teacher = maps((4, 3, 2, 2)), maps((4, 2, 2, 2))
    method, step = made(student, teacher)
    guess = guesses(method)[0]
    errors = (guess.mean(student["stage1"]) - teacher["stage1"]).square().mean((0, 2, 3)).detach()
    guess.raw.data = (errors - SMALLEST).expm1().log()
    method.terms(step)["surprise"].backward()
    assert guess.raw.grad is not None
    assert guess.raw.grad.abs().max() < 1e-12


def test_every_variance_moves_towards_the_errors_in_training() -> None:
    world = World.make()
    method = world.method("vid")
    assert isinstance(method, VariationalInformation)
    world.fit(method, cfg=TrainConfig(epochs=2, batch_size=8, lr=0.05, schedule="constant", optimizer="adam"))
    for guess in guesses(method):
        assert (guess.variance() - 5).abs().min() > 1e-3
        assert guess.variance().median() < 4.9  # most errors are below 1


def test_gradcheck() -> None:
    student, teacher = maps((2, 3, 2, 2), (2, 2, 1, 1)), maps((2, 2, 2, 2), (2, 2, 2, 2))
    method, _ = made(student, teacher)
    stages = [x.requires_grad_() for x in student.values()]

    def surprise(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return method.terms(step_of({"stage1": first, "stage2": second}, teacher))["surprise"]

    assert torch.autograd.gradcheck(surprise, (*stages, *(guess.raw for guess in guesses(method))))


def test_one_image_of_one_channel_will_do() -> None:
    method, step = made(maps((1, 1, 1, 1)), maps((1, 1, 3, 3)))
    assert method.terms(step)["surprise"].isfinite()


def test_all_but_the_stem_is_meant_and_the_deepest_where_one_has_more() -> None:
    method = World.make().method("vid")
    assert isinstance(method, VariationalInformation)
    assert method.pairs == [("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3")]
    shallow, _ = made(maps((2, 3, 2, 2)), maps((2, 3, 4, 4), (2, 3, 2, 2)))
    assert shallow.pairs == [("stage1", "stage2")]


def test_a_stage_that_is_not_there_is_named_with_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"method\.teacher_stages: there is no 'stage9'. Did you mean 'stage3'.*stem"):
        World.make().method("vid", teacher_stages=("stage9",))
    with pytest.raises(ValueError, match=r"method\.student_stages names 4 stages, but there are 3"):
        World.make().method("vid", student_stages=("stem", "stage1", "stage2", "stage3"))
    with pytest.raises(ValueError, match=r"no stage to match.*taps"):
        made({"stem": torch.zeros(2, 1, 1, 1)}, maps((2, 1, 1, 1)))
