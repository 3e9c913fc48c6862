import math
from typing import Any

import pytest
import torch
from torch import Tensor
from world import World

from pipeline.methods.crd import Config, ContrastiveRepresentation
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

LABELS = torch.tensor([2, 0, 1, 0, 2, 0, 1, 4, 2, 0])  # not sorted, of unequal number, none of class 3


def step_of(student: Tensor, teacher: Tensor, index: Tensor, labels: Tensor = LABELS) -> Step:
    answers = [
        Answer(torch.zeros(len(pooled), 5, dtype=torch.float64), {}, pooled, {})
        for pooled in (student, teacher)
    ]
    return Step.of(student=answers[0], teacher=answers[1], labels=labels[index], index=index)


def made(n: int = 3, labels: Tensor = LABELS, **settings: Any) -> tuple[ContrastiveRepresentation, Step]:
    torch.manual_seed(0)
    step = step_of(
        torch.randn(n, 4).double(), torch.randn(n, 6).double(), torch.randperm(len(labels))[:n], labels
    )
    settings = {"dimensions": 5} | settings
    probe = Step.of(
        student=Answer(step.student.logits, {}, step.student.pooled.float(), {}),
        teacher=Answer(step.teacher.logits, {}, step.teacher.pooled.float(), {}),
        labels=step.labels,
        index=step.index,
    )
    method = ContrastiveRepresentation(Config(name="crd", **settings), probe, labels)
    return method.double(), step


def contrast(method: ContrastiveRepresentation, step: Step) -> Tensor:
    return method.terms(step)["contrast"]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow(method: ContrastiveRepresentation, step: Step, side: int, labels: list[int]) -> float:
    """Noise-contrastive estimation by its definition, in eval mode.

    The negatives are the middles of equal shares of the images of other classes.
    """
    linear, pooled = (
        (method.embed_student, step.student.pooled),
        (method.embed_teacher, step.teacher.pooled),
    )[side]
    w, bias, rows = linear.weight.tolist(), linear.bias.tolist(), pooled.tolist()
    images, count = len(labels), method.negatives
    memory = [method.memories[1 - side, method.slots[j]].tolist() for j in range(images)]
    scores = []
    for row, index in zip(rows, step.index.tolist(), strict=True):
        vector = [dot(line, row) + b for line, b in zip(w, bias, strict=True)]
        length = math.sqrt(dot(vector, vector))
        others = sorted(
            (j for j in range(images) if labels[j] != labels[index]), key=lambda j: (labels[j], j)
        )
        chosen = [others[int((k + 0.5) * len(others) / count)] for k in range(count)]
        scores.append([math.exp(dot(vector, memory[j]) / length / 0.07) for j in (index, *chosen)])
    flat = [score for line in scores for score in line]
    z = sum(flat) / len(flat) * images
    noise = count / images
    total = 0.0
    for positive, *negatives in scores:
        total -= math.log(positive / z / (positive / z + noise))
        total -= sum(math.log(noise / (score / z + noise)) for score in negatives)
    return total / len(rows)


@pytest.mark.parametrize("negatives", [1, 4, 16384])
def test_the_term_equals_the_slow_loop(negatives: int) -> None:
    method, step = made(negatives=negatives)
    expected = slow(method, step, 0, LABELS.tolist()) + slow(method, step, 1, LABELS.tolist())
    assert contrast(method.eval(), step).item() == pytest.approx(expected, rel=1e-6)


def test_each_image_of_another_class_is_drawn_and_no_other() -> None:
    method, step = made(len(LABELS))
    assert method.negatives == 6  # the largest class leaves no more
    by_slot = LABELS[method.slots.argsort()]
    drawn = torch.stack(
        [method.draw(step.labels, torch.rand(len(step.labels), method.negatives)) for _ in range(200)]
    )
    assert (by_slot[drawn] != step.labels[:, None]).all()
    for row, label in enumerate(step.labels):
        assert set(drawn[:, row].flatten().tolist()) == set((by_slot != label).nonzero().flatten().tolist())


def test_each_image_is_drawn_equally_often() -> None:
    labels = torch.arange(100) % 10
    method, _ = made(labels=labels, negatives=7)
    drawn = torch.cat([method.draw(torch.zeros(50).long(), torch.rand(50, 7)) for _ in range(100)])
    share = torch.bincount(drawn.flatten(), minlength=100)[10:] / drawn.numel()
    assert share.max() < 1.25 / 90
    assert share.min() > 0.75 / 90


def test_the_order_of_the_batch_does_not_matter() -> None:
    method, step = made(negatives=16384, labels=torch.arange(8) % 2)
    value = contrast(method.eval(), step).item()
    order = torch.randperm(3)
    shuffled = step_of(
        step.student.pooled[order], step.teacher.pooled[order], step.index[order], torch.arange(8) % 2
    )
    assert contrast(method, shuffled).item() == pytest.approx(value)


def test_vectors_like_their_memory_and_unlike_all_others_cost_almost_nothing() -> None:
    method, step = made(n=2, labels=torch.tensor([0, 1]), dimensions=2)
    memory = torch.eye(2).double()[method.slots.argsort()]
    method.memories.copy_(torch.stack([memory, memory]))
    method.log_z.fill_(math.log(math.exp(1 / 0.07)) / 2)  # far from both scores
    for linear, pooled in (
        (method.embed_student, step.student.pooled),
        (method.embed_teacher, step.teacher.pooled),
    ):
        linear.weight.data = torch.linalg.lstsq(pooled, torch.eye(2).double()[step.index]).solution.T
        linear.bias.data.zero_()
    assert contrast(method.eval(), step).item() < 0.01


def test_the_constant_comes_from_the_first_batch() -> None:
    method, step = made()
    method.terms(step)
    log_z = method.log_z.clone()
    assert log_z.isfinite().all()
    other = step_of(step.student.pooled * -1, step.teacher.pooled * 2 + 1, step.index)
    method.terms(other)
    assert torch.equal(method.log_z, log_z)
    copy, _ = made()
    copy.load_state_dict(method.state_dict())
    torch.manual_seed(1)
    again = contrast(method, step).item()
    torch.manual_seed(1)
    assert contrast(copy, step).item() == again


def test_memories_change_after_the_step_and_only_for_the_images_of_the_batch() -> None:
    world = World.make()
    method, step = made(momentum=0.25)
    before = method.memories.clone()
    torch.autograd.backward(contrast(method, step))
    assert torch.equal(method.memories, before)
    method.after_backward(step, world.student)
    embeddings = (
        (method.embed_student, step.student.pooled),
        (method.embed_teacher, step.teacher.pooled),
    )
    for side, (linear, pooled) in enumerate(embeddings):
        for row, index in enumerate(step.index):
            vector = linear(pooled[row])
            mixed = 0.25 * before[side, method.slots[index]] + 0.75 * vector / vector.norm()
            assert torch.allclose(method.memories[side, method.slots[index]], mixed / mixed.norm())
    others = torch.ones(len(LABELS)).bool()
    others[method.slots[step.index]] = False
    assert torch.equal(method.memories[:, others], before[:, others])
    after = method.memories.clone()
    method.after_backward(step, world.student)
    assert torch.equal(method.memories, after)


def test_both_parts_of_an_accumulated_batch_are_remembered() -> None:
    world = World.make()
    method, step = made(4)
    before = method.memories.clone()
    for part in (slice(0, 2), slice(2, 4)):
        method.terms(step_of(step.student.pooled[part], step.teacher.pooled[part], step.index[part]))
    method.after_backward(step, world.student)
    assert (method.memories != before).any(2).sum(1).tolist() == [4, 4]


def test_in_eval_mode_nothing_changes_and_nothing_is_random() -> None:
    method, step = made()
    method.eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    values = [contrast(method, step).item() for _ in range(2)]
    method.after_backward(step, World.make().student)
    assert values[0] == values[1]
    assert all(
        torch.equal(value, before[name]) or value.isnan().all() for name, value in method.state_dict().items()
    )


def test_the_gradient_equals_finite_differences() -> None:
    method, step = made()
    method.terms(step)  # sets the constant
    method.eval()
    inputs = (
        step.student.pooled.requires_grad_(),
        step.teacher.pooled.requires_grad_(),
        method.embed_student.weight,
    )
    assert torch.autograd.gradcheck(lambda s, t, _: contrast(method, step_of(s, t, step.index)), inputs)


def test_one_image_is_enough() -> None:
    method, step = made(1)
    assert contrast(method, step).isfinite()


def test_a_single_class_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"crd compares each image with images of other classes.*second class.*pkt"
    ):
        made(labels=torch.ones(4).long())
