import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from world import CLASSES, World

from pipeline import nets
from pipeline.methods.jacobian import JacobianMatching, gradient_distance
from pipeline.taps import Step, Tapped, View

Net = Callable[[Tensor], View]


def net(maps: Tensor, logits: Tensor) -> Net:
    """One hidden value a map and place: `tanh(maps * pixels)`; logits are linear in them."""

    def forward(images: Tensor) -> View:
        hidden = torch.einsum("ci,bihw->bchw", maps, images).tanh()
        return View(hidden.flatten(1) @ logits, {"stem": images, "stage1": hidden}, hidden.mean((2, 3)), {})

    return forward


def random_net(channels: int, *, inputs: int = 1, classes: int = 3, size: int = 2) -> Net:
    return net(
        torch.randn(channels, inputs, dtype=torch.float64), torch.randn(channels * size * size, classes, dtype=torch.float64)
    )  # fmt: skip


def step_of(student: Net, teacher: Net, images: Tensor) -> Step:
    images = images.clone().requires_grad_()
    labels = torch.zeros(len(images), dtype=torch.long)
    return Step.of(student=student(images), teacher=teacher(images), labels=labels, index=torch.arange(len(images)), images=images)


def term(student: Net, teacher: Net, images: Tensor, of: str = "logit") -> Tensor:
    step = step_of(student, teacher, images)
    (value,) = (
        JacobianMatching(JacobianMatching.Config.model_validate({"name": "jacobian", "of": of}), step, step.labels).terms(step).values()
    )
    return value


def slow_distance(of_student: list[list[float]], of_teacher: list[list[float]]) -> float:
    total = 0.0
    for s, t in zip(of_student, of_teacher, strict=True):
        norm_s, norm_t = math.sqrt(sum(x * x for x in s)), math.sqrt(sum(x * x for x in t))
        total += sum((x / norm_s - y / norm_t) ** 2 for x, y in zip(s, t, strict=True))
    return total / len(of_student)


def test_the_strongest_logit_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    weights = {who: (torch.randn(c, 1, dtype=torch.float64), torch.randn(4 * c, 3, dtype=torch.float64)) for who, c in (("s", 2), ("t", 3))}

    def hidden(who: str, b: int, c: int, place: int) -> float:
        return math.tanh(weights[who][0][c, 0].item() * images[b].flatten()[place].item())

    def logit(who: str, b: int, k: int) -> float:
        maps, out = weights[who]
        return sum(hidden(who, b, c, p) * out[c * 4 + p, k].item() for c in range(len(maps)) for p in range(4))

    def slope(who: str, b: int, k: int) -> list[float]:
        maps, out = weights[who]
        return [
            sum((1 - hidden(who, b, c, p) ** 2) * maps[c, 0].item() * out[c * 4 + p, k].item() for c in range(len(maps))) for p in range(4)
        ]

    strongest = [max(range(3), key=lambda k: logit("t", b, k)) for b in range(3)]
    assert any(k != max(range(3), key=lambda k: logit("s", b, k)) for b, k in enumerate(strongest)), "the teacher's choice must matter here"
    slow = slow_distance(*([slope(who, b, strongest[b]) for b in range(3)] for who in "st"))
    assert term(net(*weights["s"]), net(*weights["t"]), images).item() == pytest.approx(slow, rel=1e-9)


def test_the_strongest_attention_equals_the_slow_loop_where_maps_differ_in_size() -> None:
    torch.manual_seed(1)
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    student, teacher = torch.randn(2, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)

    def halved(images: Tensor) -> View:  # every second pixel, in both directions
        return net(student, torch.ones(8, 3, dtype=torch.float64))(images[:, :, ::2, ::2])

    def attention(maps: Tensor, b: int, y: int, x: int) -> tuple[float, list[float]]:
        """Mean of the squared channels at a place, and its slope in the channels of that pixel."""
        hidden = [math.tanh(sum(row[i].item() * images[b, i, y, x].item() for i in range(2))) for row in maps]
        slope = [sum(2 * h * (1 - h * h) * row[i].item() for h, row in zip(hidden, maps, strict=True)) / len(maps) for i in range(2)]
        return sum(h * h for h in hidden) / len(maps), slope

    of_student, of_teacher = [], []
    for b in range(3):
        pooled = {
            (y, x): sum(attention(teacher, b, 2 * y + dy, 2 * x + dx)[0] for dy in (0, 1) for dx in (0, 1)) / 4
            for y in (0, 1)
            for x in (0, 1)
        }
        y, x = max(pooled, key=lambda place: pooled[place])
        s, t = [0.0] * 32, [0.0] * 32
        for i in range(2):
            s[i * 16 + 2 * y * 4 + 2 * x] = attention(student, b, 2 * y, 2 * x)[1][i]
            for dy in (0, 1):
                for dx in (0, 1):
                    t[i * 16 + (2 * y + dy) * 4 + 2 * x + dx] = attention(teacher, b, 2 * y + dy, 2 * x + dx)[1][i] / 4
        of_student.append(s)
        of_teacher.append(t)
    value = term(halved, net(teacher, torch.ones(48, 3, dtype=torch.float64)), images, "attention")
    assert value.item() == pytest.approx(slow_distance(of_student, of_teacher), rel=1e-9)


@pytest.mark.parametrize("of", ["logit", "attention"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(of: str) -> None:
    torch.manual_seed(0)
    same = random_net(3)
    assert term(same, same, torch.randn(4, 1, 2, 2, dtype=torch.float64), of).item() == pytest.approx(0, abs=1e-20)


def test_only_the_direction_of_a_gradient_counts() -> None:
    images = torch.randn(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    output = (images**3).sum((1, 2, 3))
    assert gradient_distance(5 * output, output, images).item() == pytest.approx(0, abs=1e-20)
    assert gradient_distance(-output, output, images).item() == pytest.approx(4)


@pytest.mark.parametrize("of", ["logit", "attention"])
def test_gradcheck(of: str) -> None:
    torch.manual_seed(0)
    images, teacher, out = torch.randn(2, 1, 2, 2, dtype=torch.float64), random_net(3), torch.randn(8, 3, dtype=torch.float64)
    maps = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps: term(net(maps, out), teacher, images, of), (maps,))


def test_one_image_and_an_output_that_ignores_it_are_no_trouble() -> None:
    flat = net(torch.zeros(2, 1, dtype=torch.float64), torch.ones(8, 3, dtype=torch.float64))
    value = term(flat, random_net(3), torch.randn(1, 1, 2, 2, dtype=torch.float64))
    assert value.item() == pytest.approx(1)


@pytest.mark.parametrize("of", ["logit", "attention"])
def test_the_student_moves_towards_the_teachers_gradients(of: str) -> None:
    """Through real networks, plain KD beside it: its teacher logits carry a graph too."""
    world = World.make()
    method = world.method("jacobian", of=of, ce_weight=0.0)
    optimiser = torch.optim.Adam(world.student.net.parameters(), 0.01)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = method.loss(world.step())
        torch.stack([term.value * term.weight for term in loss.values()]).sum().backward()
        optimiser.step()
        values.append(loss["jacobian"].value.item())
    assert values[-1] < 0.8 * values[0]
    assert all(p.grad is None for p in world.teacher.net.parameters())


def test_images_of_one_channel() -> None:
    images, labels = torch.randn(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    student, teacher = (Tapped(nets.build(name, CLASSES, 1), images) for name in ("resnet8", "resnet14"))
    teacher.net.requires_grad_(False).eval()
    with torch.no_grad():
        probe = Step(images, labels, torch.arange(3), student, teacher)
        method = JacobianMatching(JacobianMatching.Config(name="jacobian"), probe, labels)
    loss = method.loss(Step(images, labels, torch.arange(3), student, teacher))
    assert 0 < loss["jacobian"].value.item() <= 4


def test_views_that_do_not_lead_back_to_the_images_are_refused() -> None:
    world = World.make()
    method, step = world.method("jacobian"), world.step()
    assert isinstance(step.student_net, Tapped)
    ready = Step.of(student=step.student, teacher=step.teacher, labels=step.labels, index=step.index, images=step.images)
    with pytest.raises(AssertionError, match="the teacher's view doesn't lead back to the images"):
        method.loss(ready)


def test_other_classes_are_matched_by_attention_only() -> None:
    student, teacher = random_net(2, classes=3), random_net(2, classes=4)
    step = step_of(student, teacher, torch.randn(2, 1, 2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"method\.of is 'logit'.*4 classes apart and the student 3.*attention"):
        JacobianMatching(JacobianMatching.Config(name="jacobian", kd_weight=0), step, step.labels)
    JacobianMatching(JacobianMatching.Config(name="jacobian", kd_weight=0, of="attention"), step, step.labels)


def test_batch_norm_in_training_mode_can_be_differentiated_twice() -> None:
    images = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    norm = nn.BatchNorm2d(2).double()
    student = norm(images).relu().flatten(1).pow(2).sum(1)
    gradient_distance(student, images.flatten(1).sum(1), images).backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().max() > 0
