import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import World, maps, step_of_maps

from pipeline.margin import Margin, feeding_norms, margin_of, partial_distance
from pipeline.methods.ofd import FeatureOverhaul
from pipeline.taps import Step, View


def made(student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any) -> tuple[FeatureOverhaul, Step]:
    step = step_of_maps(student, teacher)
    return FeatureOverhaul(FeatureOverhaul.Config(name="ofd", **settings), step, torch.zeros(2)).double(), step


def margins(method: FeatureOverhaul) -> list[Margin]:
    return [margin for margin in method.margins if isinstance(margin, Margin)]


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 4, 4), (2, 2, 2, 2)), maps((2, 4, 2, 2), (2, 3, 4, 4))
    method, step = made(student, teacher)
    method.eval()
    expected = 0.0
    for n, (stage, weight) in enumerate({"stage1": 0.5, "stage2": 1.0}.items()):
        conv, norm = method.regressors[n].children()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean, norm.running_var = torch.randn_like(norm.bias), torch.rand_like(norm.bias) + 0.5
        reached = F.adaptive_avg_pool2d(student[stage], 2).tolist()
        t, w = teacher[stage].tolist(), conv.weight.tolist()
        stride = len(t[0][0]) // 2
        for b in range(2):
            for c in range(len(w)):
                negative = [v for image in t for row in image[c] for v in row if v < 0]
                margin = sum(negative) / len(negative)
                for y in range(2):
                    for x in range(2):
                        cells = [max(t[b][c][stride * y + dy][stride * x + dx], margin) for dy in range(stride) for dx in range(stride)]
                        wanted = sum(cells) / len(cells)
                        value = sum(w[c][k][0][0] * reached[b][k][y][x] for k in range(len(reached[b])))
                        value = (value - norm.running_mean[c].item()) / (norm.running_var[c].item() + norm.eps) ** 0.5
                        value = value * norm.weight[c].item() + norm.bias[c].item()
                        if not value <= wanted <= 0:
                            expected += weight * (wanted - value) ** 2 / 2
    assert method.terms(step)["features"].item() == pytest.approx(expected, rel=1e-9)


def test_a_student_below_a_silent_teacher_costs_nothing() -> None:
    teacher = torch.tensor([-0.5, -0.5, 0.0, 1.0, 1.0]).view(1, 5, 1, 1)
    student = torch.tensor([-2.0, 0.5, -1.0, -1.0, 3.0], requires_grad=True)
    value = partial_distance(student.view(1, 5, 1, 1), teacher)
    assert value.item() == pytest.approx(0 + 1 + 0 + 4 + 4)
    value.backward()
    assert student.grad is not None
    assert student.grad.tolist() == [0, 2, 0, -4, 4]
    assert partial_distance(teacher, teacher).item() == 0


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.5, -0.7), (-2.0, 0.3), (2.0, 0.5)])
def test_the_margin_of_a_batch_norm_is_the_mean_of_the_negative_half_of_its_gaussian(shift: float, scale: float) -> None:
    norm = nn.BatchNorm2d(1)
    norm.bias.data.fill_(shift)
    norm.weight.data.fill_(scale)
    points = [-(n + 0.5) * 1e-3 for n in range(20000)]
    density = [math.exp(-((x - shift) ** 2) / scale**2 / 2) for x in points]
    expected = sum(x * d for x, d in zip(points, density, strict=True)) / sum(density)
    assert margin_of(norm).item() == pytest.approx(expected, rel=1e-4)


def test_channels_that_are_never_negative_or_dead_have_a_margin() -> None:
    norm = nn.BatchNorm2d(4)
    norm.bias.data.copy_(torch.tensor([50.0, 1.0, -1.0, 0.0]))
    norm.weight.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert margin_of(norm).tolist() == pytest.approx([-1 / 50, 0, -1, 0], abs=1e-4)


def test_a_batch_norm_gives_the_margin_only_where_it_alone_feeds_the_activation() -> None:
    residual = World.make()
    assert list(feeding_norms(residual.step(4))) == ["stem"]
    world = World.make(teacher="wrn_10_1")
    norms = feeding_norms(world.step(4))
    assert list(norms) == ["stem", "stage1", "stage2", "stage3"]
    assert norms["stage3"] is world.teacher.net.get_submodule("norm")
    method = world.method("ofd")
    assert isinstance(method, FeatureOverhaul)
    assert torch.equal(margins(method)[-1].margin, margin_of(norms["stage3"]))
    world.fit(method)
    assert torch.equal(margins(method)[-1].margin, margin_of(norms["stage3"]))


def test_elsewhere_the_margin_is_the_mean_of_what_was_negative_in_the_first_epoch() -> None:
    torch.manual_seed(0)
    seen = [maps((2, 3, 4, 4)) for _ in range(3)]
    method, _ = made(maps((2, 3, 4, 4)), seen[0])
    method.terms(step_of_maps(maps((2, 3, 4, 4)), seen[1]))
    method.terms(step_of_maps(seen[0], seen[2], epoch=1))
    method.eval().terms(step_of_maps(seen[0], seen[2]))
    both = torch.cat([seen[0]["stage1"], seen[1]["stage1"]])
    assert margins(method)[0].margin.tolist() == pytest.approx([both[:, c][both[:, c] < 0].mean().item() for c in range(3)])


def test_a_channel_that_was_never_negative_has_a_plain_relu() -> None:
    positive = {"stage1": torch.rand(2, 1, 2, 2).double()}
    method, _ = made(maps((2, 3, 2, 2)), positive)
    assert margins(method)[0].margin.tolist() == [0]


def test_gradcheck() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 2, 2), (2, 2, 1, 1)), maps((2, 2, 2, 2), (2, 2, 2, 2))
    method, _ = made(student, teacher)
    method.eval()
    stages = [x.requires_grad_() for x in student.values()]
    weights = [weight for regressor in method.regressors for weight in regressor.parameters()]

    def features(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return method.terms(step_of_maps({"stage1": first, "stage2": second}, teacher))["features"]

    assert torch.autograd.gradcheck(features, (*stages, *weights))


def test_one_image_of_one_channel_will_do() -> None:
    method, step = made(maps((1, 1, 2, 2)), maps((1, 1, 3, 3)))
    assert method.terms(step)["features"].isfinite()


def test_a_stage_without_an_activation_is_refused_by_name() -> None:
    stages = maps((2, 3, 2, 2), (2, 3, 2, 2))
    step = step_of_maps(stages, stages)
    view = View(step.teacher.logits, stages, step.teacher.pooled, {"stage2": stages["stage2"]})
    probe = Step.of(student=step.student, teacher=view, labels=step.labels, index=step.index)
    with pytest.raises(ValueError, match=r"method\.teacher_stages: stage 'stage1' of the teacher ends in no activation.*: stage2; or let"):
        FeatureOverhaul(FeatureOverhaul.Config(name="ofd"), probe, step.labels)


def test_a_stage_that_is_not_there_is_named_with_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"method\.student_stages: there is no 'stage9'. Did you mean 'stage3'.*stem"):
        World.make().method("ofd", student_stages=("stage9",))
