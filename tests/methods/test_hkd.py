import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from world import World, noise

from pipeline import nets
from pipeline.methods._neighbours import cosine, neighbours, transfer
from pipeline.methods.hkd import InformationFlow, divergence, doubled, t_student
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

Distance = Callable[[Tensor, Tensor], Tensor]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_rows(x: list[list[float]], kind: str) -> list[dict[int, float]]:
    """p_ij of each image i for the other images j."""
    rows = []
    for i, a in enumerate(x):
        kernel = {}
        for j, b in enumerate(x):
            if kind == "cosine":
                value = (dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) + 1) / 2
            else:
                value = 1 / (1 + math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True))))
            if i != j:
                kernel[j] = value
        rows.append({j: value / sum(kernel.values()) for j, value in kernel.items()})
    return rows


def test_the_divergence_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, auxiliary = noise(5, 3), noise(5, 4)
    expected = 0.0
    for kind in ("cosine", "t-student"):
        p_s, p_a = slow_rows(student.tolist(), kind), slow_rows(auxiliary.tolist(), kind)
        expected += (
            sum((p_a[i][j] - p_s[i][j]) * math.log(p_a[i][j] / p_s[i][j]) for i in range(5) for j in p_a[i])
            / 5
        )
    assert divergence(student, auxiliary).item() == pytest.approx(expected, rel=1e-9)


def test_the_transfer_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    auxiliary, teacher = noise(5, 3), noise(5, 4)
    p_a, p_t = slow_rows(auxiliary.tolist(), "cosine"), slow_rows(teacher.tolist(), "cosine")
    expected = sum(p_t[i][j] * math.log(p_t[i][j] / p_a[i][j]) for i in range(5) for j in p_t[i]) / 20
    assert transfer(auxiliary, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("distance", [divergence, transfer])
def test_only_equal_layers_have_no_divergence(distance: Distance) -> None:
    torch.manual_seed(0)
    layer = noise(4, 3).requires_grad_()
    value = distance(layer, layer.detach())
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert layer.grad is not None
    assert layer.grad.abs().max() < 1e-12
    assert distance(layer, noise(4, 7)).item() > 1e-4


def test_cosine_ignores_rotation_and_scale_and_t_student_ignores_rotation_and_shift() -> None:
    layer = noise(4, 3)
    turned = layer @ torch.linalg.qr(noise(3, 3)).Q
    assert torch.allclose(cosine(3 * turned), cosine(layer))
    assert torch.allclose(t_student(turned + 5), t_student(layer))


def test_the_probabilities_of_a_row_sum_to_one() -> None:
    layer = noise(4, 3)
    for kernel in (cosine, t_student):
        assert torch.allclose(neighbours(kernel(layer)).sum(1), torch.ones(4).double())


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    layer, other = noise(4, 3).requires_grad_(), noise(4, 2)
    assert torch.autograd.gradcheck(lambda x: divergence(x, other), (layer,))
    assert torch.autograd.gradcheck(lambda x: transfer(x, other), (layer,))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("distance", [divergence, transfer])
def test_a_batch_of_one_or_two_images_has_nothing_to_learn(distance: Distance, images: int) -> None:
    layer = torch.zeros(images, 3, requires_grad=True)
    value = distance(layer, torch.randn(images, 2))
    torch.autograd.backward(value)
    assert value.item() == 0
    assert layer.grad is not None
    assert layer.grad.isfinite().all()


def test_the_layers_count_less_from_epoch_to_epoch_and_the_embedding_always_the_same() -> None:
    world = World.make()
    method = world.method("hkd", early_weight=10.0, decay=0.5).eval()
    world.student.net.eval()
    assert isinstance(method, InformationFlow)
    step = world.step()
    start = method.terms(step)
    auxiliary = method.tapped(step.images)
    expected = [
        divergence(step.student.maps[n].mean((2, 3)), auxiliary.maps[n].mean((2, 3)))
        for n in ("stage1", "stage2", "stage3")
    ]
    assert start["layers"].item() == pytest.approx(10 * torch.stack(expected).sum().item(), rel=1e-5)
    assert start["embedding"].item() == pytest.approx(
        divergence(step.student.pooled, auxiliary.pooled).item(), rel=1e-5
    )
    step.epoch = 3
    later = method.terms(step)
    assert later["layers"].item() == pytest.approx(start["layers"].item() / 8, rel=1e-5)
    assert later["embedding"].item() == start["embedding"].item()


def test_only_phase_auxiliary_trains_the_auxiliary() -> None:
    world = World.make()
    method = world.method("hkd")
    assert isinstance(method, InformationFlow)
    first, last = method.phases(world.student)
    assert (first.name, first.trains) == ("auxiliary", (method.auxiliary,))
    assert (last.name, last.trains) == ("distill", (world.student.net,))
    loss = first.loss(world.step())
    assert {name: weight for name, (_, weight) in loss.items()} == {"ce": 1.0, "pkt": 30000.0}
    torch.autograd.backward(loss["pkt"].value)
    assert not [
        p for p in (*world.student.net.parameters(), *world.teacher.net.parameters()) if p.grad is not None
    ]


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_10_1", "mobilenet_x0.25", "shufflenetv1", "shufflenetv2_x0.5"]
)
def test_all_maps_of_the_auxiliary_have_twice_the_width(name: str) -> None:
    torch.manual_seed(0)
    net = nets.build(name, 3, channels=1).eval()
    images = torch.randn(2, 1, 16, 16)
    student = Tapped(net, images)
    step = Step(images, torch.zeros(2).long(), torch.arange(2), student)
    with torch.no_grad():
        wide = Tapped(doubled(step), images, taps=student.taps)(images)
    assert wide.logits.shape == (2, 3)
    assert wide.pooled.shape[1] == 2 * step.student.pooled.shape[1]
    for name, narrow in step.student.maps.items():
        assert wide.maps[name].shape[1] == 2 * narrow.shape[1]
        assert wide.maps[name].shape[2:] == narrow.shape[2:]


def test_a_depthwise_convolution_stays_depthwise_and_a_grouped_one_keeps_its_groups() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(12, 12, 1, groups=3),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    images = torch.randn(2, 3, 3, 3)
    step = Step(images, torch.zeros(2).long(), torch.arange(2), Tapped(net, images, taps={"stage1": "2"}))
    _, depthwise, grouped, _, linear = doubled(step).children()
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(grouped, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (12, 24, 12)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (24, 24, 3)
    assert (linear.in_features, linear.out_features) == (24, 2)


def test_making_the_auxiliary_changes_neither_the_student_nor_its_taps() -> None:
    world = World.make()
    before = {name: tensor.clone() for name, tensor in world.student.net.state_dict().items()}
    shapes = {name: x.shape for name, x in world.step().student.maps.items()}
    method = world.method("hkd")
    assert isinstance(method, InformationFlow)
    after = world.student.net.state_dict()
    statistics = {name for name in before if "running" in name or "num_" in name}
    assert {name for name in before if not torch.equal(before[name], after[name])} <= statistics
    assert max(len(module._forward_hooks) for module in method.auxiliary.modules()) == 1  # those of `tapped`
    assert {name: x.shape for name, x in world.step().student.maps.items()} == shapes


class FixedWidth(nn.Module):
    """A network whose forward pass contains its width as a number."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.conv(x)).view(len(x), 4, 4).mean(2))
        return logits


class WithEmbedding(nn.Module):
    """A network that returns its logits and its embedding in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.conv(x).mean((2, 3))
        return torch.cat([self.fc(embedding), embedding], dim=1)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (FixedWidth(nn.GroupNorm(2, 4)), "norm, a GroupNorm, has weights of its own"),
        (FixedWidth(nn.Identity()), "shape .* is invalid for input of size 64"),
        (WithEmbedding(), r"its logits would be \(2, 11\) instead of \(2, 7\)"),
    ],
)
def test_a_student_that_cannot_be_widened_is_refused(net: nn.Module, reason: str) -> None:
    images = torch.randn(2, 3, 4, 4)
    step = Step(
        images, torch.zeros(2).long(), torch.arange(2), Tapped(net.eval(), images, taps={"stage1": "conv"})
    )
    with pytest.raises(ValueError, match=rf"hkd needs an auxiliary.*cannot be widened: {reason}.*pkt"):
        doubled(step)
