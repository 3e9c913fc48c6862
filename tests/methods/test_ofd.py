import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import World, maps, method_on_maps, of_kind, step_of_maps

from pipeline.methods._margin import Margin, feeding_norms, margin_of, partial_distance
from pipeline.methods.ofd import FeatureOverhaul

made = partial(method_on_maps, FeatureOverhaul)


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 4, 4), (2, 2, 2, 2)), maps((2, 4, 2, 2), (2, 3, 4, 4))
    method, step = made(student, teacher)
    method.eval()
    expected = 0.0
    for n, (name, weight) in enumerate({"stage1": 0.5, "stage2": 1.0}.items()):
        conv, norm = method.regressors[n].children()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean, norm.running_var = torch.randn_like(norm.bias), torch.rand_like(norm.bias) + 0.5
        s = F.adaptive_avg_pool2d(student[name], 2).tolist()
        t, w = teacher[name].tolist(), conv.weight.tolist()
        stride = len(t[0][0]) // 2
        for b in range(2):
            for c in range(len(w)):
                negative = [v for image in t for row in image[c] for v in row if v < 0]
                margin = sum(negative) / len(negative)
                deviation = (norm.running_var[c].item() + norm.eps) ** 0.5
                for y in range(2):
                    for x in range(2):
                        cells = [
                            max(t[b][c][stride * y + dy][stride * x + dx], margin)
                            for dy in range(stride)
                            for dx in range(stride)
                        ]
                        target = sum(cells) / len(cells)
                        value = sum(w[c][k][0][0] * s[b][k][y][x] for k in range(len(s[b])))
                        value = (value - norm.running_mean[c].item()) / deviation
                        value = value * norm.weight[c].item() + norm.bias[c].item()
                        if not value <= target <= 0:
                            expected += weight * (target - value) ** 2 / 2
    assert method.terms(step)["features"].item() == pytest.approx(expected, rel=1e-9)


def test_a_student_below_a_teacher_that_is_not_positive_costs_nothing() -> None:
    teacher = torch.tensor([-0.5, -0.5, 0.0, 1.0, 1.0]).view(1, 5, 1, 1)
    student = torch.tensor([-2.0, 0.5, -1.0, -1.0, 3.0], requires_grad=True)
    value = partial_distance(student.view(1, 5, 1, 1), teacher)
    assert value.item() == pytest.approx(0 + 1 + 0 + 4 + 4)
    torch.autograd.backward(value)
    assert student.grad is not None
    assert student.grad.tolist() == [0, 2, 0, -4, 4]
    assert partial_distance(teacher, teacher).item() == 0


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.5, -0.7), (-2.0, 0.3), (2.0, 0.5)])
def test_the_margin_of_a_batch_norm_is_the_mean_of_the_negative_part_of_its_gaussian(
    shift: float, scale: float
) -> None:
    norm = nn.BatchNorm2d(1)
    norm.bias.data.fill_(shift)
    norm.weight.data.fill_(scale)
    points = [-(n + 0.5) * 1e-3 for n in range(20000)]
    density = [math.exp(-((x - shift) ** 2) / scale**2 / 2) for x in points]
    expected = sum(x * d for x, d in zip(points, density, strict=True)) / sum(density)
    assert margin_of(norm).item() == pytest.approx(expected, rel=1e-4)


def test_channels_that_are_hardly_ever_negative_or_constant_have_a_margin() -> None:
    norm = nn.BatchNorm2d(4)
    norm.bias.data.copy_(torch.tensor([50.0, 1.0, -1.0, 0.0]))
    norm.weight.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert margin_of(norm).tolist() == pytest.approx([-1 / 50, 0, -1, 0], abs=1e-4)


def test_a_batch_norm_gives_the_margin_only_if_the_activation_reads_nothing_else() -> None:
    with_residual_sums = World.make()
    assert list(feeding_norms(with_residual_sums.step(4))) == ["stem"]
    world = World.make(teacher="wrn_10_1")
    norms = feeding_norms(world.step(4))
    assert list(norms) == ["stem", "stage1", "stage2", "stage3"]
    assert norms["stage3"] is world.teacher.net.get_submodule("norm")
    method = world.method("ofd")
    assert isinstance(method, FeatureOverhaul)
    assert torch.equal(of_kind(Margin, method.margins)[-1].margin, margin_of(norms["stage3"]))
    world.fit(method)
    assert torch.equal(of_kind(Margin, method.margins)[-1].margin, margin_of(norms["stage3"]))


def test_otherwise_the_margin_is_the_mean_of_the_negative_values_of_probe_and_first_epoch() -> None:
    torch.manual_seed(0)
    probe, first_epoch, later = (maps((2, 3, 4, 4)) for _ in range(3))
    method, _ = made(maps((2, 3, 4, 4)), probe)
    method.terms(step_of_maps(maps((2, 3, 4, 4)), first_epoch))
    method.terms(step_of_maps(probe, later, epoch=1))
    method.eval().terms(step_of_maps(probe, later))
    both = torch.cat([probe["stage1"], first_epoch["stage1"]])
    assert of_kind(Margin, method.margins)[0].margin.tolist() == pytest.approx(
        [both[:, c][both[:, c] < 0].mean().item() for c in range(3)]
    )


def test_a_channel_without_negative_values_has_a_plain_relu() -> None:
    positive = {"stage1": torch.rand(2, 1, 2, 2).double()}
    method, _ = made(maps((2, 3, 2, 2)), positive)
    assert of_kind(Margin, method.margins)[0].margin.tolist() == [0]


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 2, 2), (2, 2, 1, 1)), maps((2, 2, 2, 2), (2, 2, 2, 2))
    method, _ = made(student, teacher)
    method.eval()
    inputs = [x.requires_grad_() for x in student.values()]
    weights = [weight for regressor in method.regressors for weight in regressor.parameters()]

    def features(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return method.terms(step_of_maps({"stage1": first, "stage2": second}, teacher))["features"]

    assert torch.autograd.gradcheck(features, (*inputs, *weights))


def test_one_image_of_one_channel_is_enough() -> None:
    method, step = made(maps((1, 1, 2, 2)), maps((1, 1, 3, 3)))
    assert method.terms(step)["features"].isfinite()


def test_the_named_maps_are_matched() -> None:
    shown = maps((2, 1, 4, 4), (2, 2, 4, 4), (2, 3, 4, 4))
    method, _ = made(shown, shown, student_maps=("stage1",), teacher_maps=("stage2",))
    assert method.pairs == [("stage1", "stage2")]
