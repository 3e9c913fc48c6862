import math

import pytest
import torch
from torch import Tensor, nn
from world import World

from pipeline import nets
from pipeline.methods.hkd import InformationFlow, divergence, doubled, t_student
from pipeline.neighbours import cosine, neighbours, transfer
from pipeline.taps import Step, Tapped


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_rows(x: list[list[float]], kind: str) -> list[dict[int, float]]:
    """p_ij of every instance i over the others j."""
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
    student, auxiliary = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = 0.0
    for kind in ("cosine", "t-student"):
        p_s, p_a = slow_rows(student.tolist(), kind), slow_rows(auxiliary.tolist(), kind)
        expected += sum((p_a[i][j] - p_s[i][j]) * math.log(p_a[i][j] / p_s[i][j]) for i in range(5) for j in p_a[i]) / 5
    assert divergence(student, auxiliary).item() == pytest.approx(expected, rel=1e-9)


def test_the_transfer_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    auxiliary, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p_a, p_t = slow_rows(auxiliary.tolist(), "cosine"), slow_rows(teacher.tolist(), "cosine")
    expected = sum(p_t[i][j] * math.log(p_t[i][j] / p_a[i][j]) for i in range(5) for j in p_t[i]) / 20
    assert transfer(auxiliary, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("distance", [divergence, transfer])
def test_equal_layers_diverge_by_nothing_and_others_by_something(distance: object) -> None:
    assert callable(distance)
    torch.manual_seed(0)
    layer = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    value = distance(layer, layer.detach())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert layer.grad is not None
    assert layer.grad.abs().max() < 1e-12
    assert distance(layer, torch.randn(4, 7, dtype=torch.float64)).item() > 1e-4


def test_kernels_ignore_what_they_should() -> None:
    layer = torch.randn(4, 3, dtype=torch.float64)
    turned = layer @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert torch.allclose(cosine(3 * turned), cosine(layer))
    assert torch.allclose(t_student(turned + 5), t_student(layer))
    assert torch.allclose(neighbours(cosine(layer)).sum(1), torch.ones(4, dtype=torch.float64))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    layer, other = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: divergence(x, other), (layer,))
    assert torch.autograd.gradcheck(lambda x: transfer(x, other), (layer,))


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("distance", [divergence, transfer])
def test_one_neighbour_or_none_tells_nothing(distance: object, instances: int) -> None:
    assert callable(distance)
    layer = torch.zeros(instances, 3, requires_grad=True)
    value = distance(layer, torch.randn(instances, 2))
    value.backward()
    assert value.item() == 0
    assert layer.grad is not None
    assert layer.grad.isfinite().all()


def test_the_stages_count_less_from_epoch_to_epoch_and_the_embedding_always_the_same() -> None:
    world = World.make()
    method = world.method("hkd", early_weight=10.0, decay=0.5).eval()
    world.student.net.eval()
    assert isinstance(method, InformationFlow)
    step = world.step()
    start = method.terms(step)
    auxiliary = method.view(step.images)
    expected = [divergence(step.student.stages[n].mean((2, 3)), auxiliary.stages[n].mean((2, 3))) for n in ("stage1", "stage2", "stage3")]
    assert start["layers"].item() == pytest.approx(10 * torch.stack(expected).sum().item(), rel=1e-5)
    assert start["embedding"].item() == pytest.approx(divergence(step.student.pooled, auxiliary.pooled).item(), rel=1e-5)
    step.epoch = 3
    later = method.terms(step)
    assert later["layers"].item() == pytest.approx(start["layers"].item() / 8, rel=1e-5)
    assert later["embedding"].item() == start["embedding"].item()


def test_the_auxiliary_learns_from_the_teacher_and_then_rests() -> None:
    world = World.make()
    method = world.method("hkd")
    assert isinstance(method, InformationFlow)
    first, last = method.phases(world.student)
    assert (first.name, first.trains) == ("auxiliary", (method.auxiliary,))
    assert (last.name, last.trains) == ("distill", (world.student.net,))
    loss = first.loss(world.step())
    assert {name: weight for name, (_, weight) in loss.items()} == {"ce": 1.0, "pkt": 30000.0}
    loss["pkt"].value.backward()
    assert not [p for p in (*world.student.net.parameters(), *world.teacher.net.parameters()) if p.grad is not None]


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1", "mobilenet_x0.25", "shufflenetv1", "shufflenetv2_x0.5"])
def test_the_auxiliary_has_twice_the_width_everywhere(name: str) -> None:
    torch.manual_seed(0)
    net = nets.build(name, 3, channels=1).eval()
    images = torch.randn(2, 1, 16, 16)
    student = Tapped(net, images)
    step = Step(images, torch.zeros(2).long(), torch.arange(2), student)
    with torch.no_grad():
        wide = Tapped(doubled(step), images, taps=student.taps)(images)
    assert wide.logits.shape == (2, 3)
    assert wide.pooled.shape[1] == 2 * step.student.pooled.shape[1]
    for stage, narrow in step.student.stages.items():
        assert wide.stages[stage].shape[1] == 2 * narrow.shape[1]
        assert wide.stages[stage].shape[2:] == narrow.shape[2:]


def test_a_depthwise_convolution_stays_depthwise_and_a_grouped_one_keeps_its_groups() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 12, 1, groups=3), nn.Flatten(), nn.Linear(12, 2))
    images = torch.randn(2, 3, 3, 3)
    step = Step(images, torch.zeros(2).long(), torch.arange(2), Tapped(net, images, taps={"stage1": "2"}))
    _, depthwise, grouped, _, linear = doubled(step).children()
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(grouped, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (12, 24, 12)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (24, 24, 3)
    assert (linear.in_features, linear.out_features) == (24, 2)


def test_making_the_auxiliary_leaves_the_student_and_its_taps_alone() -> None:
    world = World.make()
    before = {name: tensor.clone() for name, tensor in world.student.net.state_dict().items()}
    shapes = {name: stage.shape for name, stage in world.step().student.stages.items()}
    method = world.method("hkd")
    assert isinstance(method, InformationFlow)
    after = world.student.net.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {n for n in before if "running" in n or "num_" in n}
    assert max(len(module._forward_hooks) for module in method.auxiliary.modules()) == 1  # its own
    assert {name: stage.shape for name, stage in world.step().student.stages.items()} == shapes


class Stubborn(nn.Module):
    """Knows its width by heart."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).view(len(x), 4, 4).mean(2))


class Chatty(nn.Module):
    """Answers with its embedding, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.conv(x).mean((2, 3))
        return torch.cat([self.fc(embedding), embedding], dim=1)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Stubborn(nn.GroupNorm(2, 4)), "norm, a GroupNorm, has weights of its own"),
        (Stubborn(nn.Identity()), "shape .* is invalid for input of size 64"),
        (Chatty(), r"it would answer \(2, 11\) instead of \(2, 7\)"),
    ],
)
def test_a_student_that_cannot_be_widened_is_refused(net: nn.Module, reason: str) -> None:
    images = torch.randn(2, 3, 4, 4)
    step = Step(images, torch.zeros(2).long(), torch.arange(2), Tapped(net.eval(), images, taps={"stage1": "conv"}))
    with pytest.raises(ValueError, match=rf"hkd needs an auxiliary.*can't be widened: {reason}.*pkt"):
        doubled(step)
