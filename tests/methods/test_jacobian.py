import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from world import CLASSES, World, noise

from pipeline import nets
from pipeline.methods.jacobian import Config, JacobianMatching, gradient_distance
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

Net = Callable[[Tensor], Answer]


def net(weights: Tensor, classifier: Tensor) -> Net:
    """A network with one map, `tanh(weights @ channels)` at each position, of which the logits are linear."""

    def forward(images: Tensor) -> Answer:
        hidden = torch.einsum("ci,bihw->bchw", weights, images).tanh()
        maps = {"stem": images, "stage1": hidden}
        return Answer(hidden.flatten(1) @ classifier, maps, hidden.mean((2, 3)), {})

    return forward


def random_net(channels: int, *, inputs: int = 1, classes: int = 3, size: int = 2) -> Net:
    return net(noise(channels, inputs), noise(channels * size * size, classes))


def step_of(student: Net, teacher: Net, images: Tensor) -> Step:
    images = images.clone().requires_grad_()
    labels = torch.zeros(len(images), dtype=torch.long)
    return Step.of(
        student=student(images),
        teacher=teacher(images),
        labels=labels,
        index=torch.arange(len(images)),
        images=images,
    )


def term(student: Net, teacher: Net, images: Tensor, of: str = "logit") -> Tensor:
    step = step_of(student, teacher, images)
    config = Config.model_validate({"name": "jacobian", "of": of})
    return JacobianMatching(config, step, step.labels).terms(step)["jacobian"]


def slow_distance(of_student: list[list[float]], of_teacher: list[list[float]]) -> float:
    total = 0.0
    for s, t in zip(of_student, of_teacher, strict=True):
        norm_s, norm_t = math.sqrt(sum(x * x for x in s)), math.sqrt(sum(x * x for x in t))
        total += sum((x / norm_s - y / norm_t) ** 2 for x, y in zip(s, t, strict=True))
    return total / len(of_student)


def test_the_term_with_logits_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    images = noise(3, 1, 2, 2)
    parts = {
        network: (noise(channels, 1), noise(4 * channels, 3)) for network, channels in (("s", 2), ("t", 3))
    }

    def hidden(network: str, b: int, c: int, p: int) -> float:
        return math.tanh(parts[network][0][c, 0].item() * images[b].flatten()[p].item())

    def logit(network: str, b: int, k: int) -> float:
        weights, classifier = parts[network]
        return sum(
            hidden(network, b, c, p) * classifier[c * 4 + p, k].item()
            for c in range(len(weights))
            for p in range(4)
        )

    def slope(network: str, b: int, k: int) -> list[float]:
        weights, classifier = parts[network]
        return [
            sum(
                (1 - hidden(network, b, c, p) ** 2) * weights[c, 0].item() * classifier[c * 4 + p, k].item()
                for c in range(len(weights))
            )
            for p in range(4)
        ]

    def largest(network: str, b: int) -> int:
        return max(range(3), key=lambda k: logit(network, b, k))

    chosen = [largest("t", b) for b in range(3)]
    assert chosen != [largest("s", b) for b in range(3)], "the networks must differ in their choice here"
    slow = slow_distance(*([slope(network, b, chosen[b]) for b in range(3)] for network in "st"))
    assert term(net(*parts["s"]), net(*parts["t"]), images).item() == pytest.approx(slow, rel=1e-9)


def test_the_term_with_attention_equals_the_slow_loop_for_maps_of_different_size() -> None:
    torch.manual_seed(1)
    images = noise(3, 2, 4, 4)
    student, teacher = noise(2, 2), noise(3, 2)

    def halved(images: Tensor) -> Answer:
        """The student, which reads every second position in both directions."""
        return net(student, torch.ones(8, 3, dtype=torch.float64))(images[:, :, ::2, ::2])

    def attention(weights: Tensor, b: int, y: int, x: int) -> tuple[float, list[float]]:
        """Mean of the squared channels at a place, and its slope in the channels of the image there."""
        inputs = [images[b, i, y, x].item() for i in range(2)]
        rows = weights.tolist()
        hidden = [math.tanh(sum(w * v for w, v in zip(row, inputs, strict=True))) for row in rows]
        slope = [
            sum(2 * h * (1 - h * h) * row[i] for h, row in zip(hidden, rows, strict=True)) / len(rows)
            for i in range(2)
        ]
        return sum(h * h for h in hidden) / len(rows), slope

    of_student, of_teacher = [], []
    for b in range(3):
        pooled = {
            (y, x): sum(attention(teacher, b, 2 * y + dy, 2 * x + dx)[0] for dy in (0, 1) for dx in (0, 1))
            / 4
            for y in (0, 1)
            for x in (0, 1)
        }
        y, x = max(pooled, key=lambda place: pooled[place])
        s, t = [0.0] * 32, [0.0] * 32
        for i in range(2):
            s[i * 16 + 2 * y * 4 + 2 * x] = attention(student, b, 2 * y, 2 * x)[1][i]
            for dy in (0, 1):
                for dx in (0, 1):
                    t[i * 16 + (2 * y + dy) * 4 + 2 * x + dx] = (
                        attention(teacher, b, 2 * y + dy, 2 * x + dx)[1][i] / 4
                    )
        of_student.append(s)
        of_teacher.append(t)
    value = term(halved, net(teacher, torch.ones(48, 3, dtype=torch.float64)), images, "attention")
    assert value.item() == pytest.approx(slow_distance(of_student, of_teacher), rel=1e-9)


@pytest.mark.parametrize("of", ["logit", "attention"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(of: str) -> None:
    torch.manual_seed(0)
    same = random_net(3)
    assert term(same, same, noise(4, 1, 2, 2), of).item() == pytest.approx(0, abs=1e-20)


def test_only_the_direction_of_a_gradient_matters() -> None:
    images = noise(4, 1, 2, 2).requires_grad_()
    output = (images**3).sum((1, 2, 3))
    assert gradient_distance(5 * output, output, images).item() == pytest.approx(0, abs=1e-20)
    assert gradient_distance(-output, output, images).item() == pytest.approx(4)


@pytest.mark.parametrize("of", ["logit", "attention"])
def test_the_gradient_equals_finite_differences(of: str) -> None:
    torch.manual_seed(0)
    images, teacher, classifier = noise(2, 1, 2, 2), random_net(3), noise(8, 3)
    weights = noise(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: term(net(w, classifier), teacher, images, of), (weights,))


def test_one_image_and_an_output_that_ignores_it_are_legal() -> None:
    flat = net(torch.zeros(2, 1, dtype=torch.float64), torch.ones(8, 3, dtype=torch.float64))
    value = term(flat, random_net(3), noise(1, 1, 2, 2))
    assert value.item() == pytest.approx(1)


@pytest.mark.parametrize("of", ["logit", "attention"])
def test_the_student_learns_the_gradients_of_the_teacher(of: str) -> None:
    """With networks and plain KD, which reads teacher logits that have a graph."""
    world = World.make()
    method = world.method("jacobian", of=of, ce_weight=0.0)
    optimizer = torch.optim.Adam(world.student.net.parameters(), 0.01)
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = method.loss(world.step())
        torch.autograd.backward(torch.stack([term.value * term.weight for term in loss.values()]).sum())
        optimizer.step()
        values.append(loss["jacobian"].value.item())
    assert values[-1] < 0.8 * values[0]
    assert all(p.grad is None for p in world.teacher.net.parameters())


def test_images_may_have_one_channel() -> None:
    images, labels = torch.randn(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    student, teacher = (Tapped(nets.build(name, CLASSES, 1), images) for name in ("resnet8", "resnet14"))
    teacher.net.requires_grad_(False).eval()
    with torch.no_grad():
        probe = Step(images, labels, torch.arange(3), student, teacher)
        method = JacobianMatching(Config(name="jacobian"), probe, labels)
    loss = method.loss(Step(images, labels, torch.arange(3), student, teacher))
    assert 0 < loss["jacobian"].value.item() <= 4


def test_answers_without_a_graph_to_the_images_are_refused() -> None:
    world = World.make()
    method, step = world.method("jacobian"), world.step()
    assert isinstance(step.student_net, Tapped)
    stored = Step.of(
        student=step.student, teacher=step.teacher, labels=step.labels, index=step.index, images=step.images
    )
    with pytest.raises(AssertionError, match="the teacher's answer has no graph back to the images"):
        method.loss(stored)


def test_networks_of_different_classes_are_matched_with_attention_only() -> None:
    student, teacher = random_net(2, classes=3), random_net(2, classes=4)
    step = step_of(student, teacher, noise(2, 1, 2, 2))
    with pytest.raises(
        ValueError, match=r"method\.of is 'logit'.*teacher has 4 classes and the student 3.*attention"
    ):
        JacobianMatching(Config(name="jacobian", kd_weight=0), step, step.labels)
    JacobianMatching(Config(name="jacobian", kd_weight=0, of="attention"), step, step.labels)


def test_batch_norm_in_training_mode_can_be_differentiated_twice() -> None:
    images = noise(4, 2, 3, 3).requires_grad_()
    norm = nn.BatchNorm2d(2).double()
    student = norm(images).relu().flatten(1).pow(2).sum(1)
    torch.autograd.backward(gradient_distance(student, images.flatten(1).sum(1), images))
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().max() > 0
