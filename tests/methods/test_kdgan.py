import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from world import World, noise

from pipeline.methods.kdgan import KDGAN, Config, forged_score, true_score
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step


def step_of(student: Tensor, teacher: Tensor, pooled: Tensor, labels: list[int]) -> Step:
    """A step of these logits; both networks have the same pooled embeddings."""
    return Step.of(
        student=Answer(student, {}, pooled, {}),
        teacher=Answer(teacher, {}, pooled, {}),
        labels=torch.tensor(labels),
        index=torch.arange(len(labels)),
    )


def made(step: Step, **settings: Any) -> KDGAN:
    config = Config.model_validate({"name": "kdgan", "hidden": 4, **settings})
    return KDGAN(config, step, step.labels).double()


def example(*, batch: int = 5, classes: int = 3) -> Step:
    torch.manual_seed(0)
    student, teacher = noise(2, batch, classes)
    labels = [n % classes for n in range(batch)]
    return step_of(student.requires_grad_(), teacher, noise(batch, 6), labels)


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_the_terms_equal_the_slow_loop() -> None:
    step = example()
    method = made(step, share=0.3, sample_temperature=0.7)
    scores = method.discriminator(step.teacher.pooled).tolist()
    torch.manual_seed(1)
    terms = method.terms(step)
    torch.manual_seed(1)
    gumbel = [
        -torch.empty_like(step.student.logits, requires_grad=False).exponential_().log() for _ in range(2)
    ]

    def forged(logits: Tensor, gumbel: Tensor, b: int) -> list[float]:
        powers = [
            math.exp((z + g) / 0.7) for z, g in zip(logits[b].tolist(), gumbel[b].tolist(), strict=True)
        ]
        return [x / sum(powers) for x in powers]

    value = deception = 0.0
    for b, label in enumerate(step.labels.tolist()):
        student, teacher = (
            sum(y * s for y, s in zip(forged(logits, g, b), scores[b], strict=True))
            for logits, g in zip((step.student.logits, step.teacher.logits), gumbel, strict=True)
        )
        deception += 0.3 * log_sigmoid(-student) / 5
        value += (
            log_sigmoid(scores[b][label]) + 0.3 * log_sigmoid(-student) + 0.7 * log_sigmoid(-teacher)
        ) / 5
    assert terms["discriminator"].item() == pytest.approx(-value, rel=1e-9)
    assert terms["deception"].item() == pytest.approx(deception, rel=1e-9)


def test_one_backward_pass_trains_both_sides() -> None:
    """The student descends the value of the game and the discriminator ascends it."""
    step = example()
    method = made(step)
    torch.manual_seed(1)
    torch.autograd.backward(torch.stack(list(method.terms(step).values())).sum())
    torch.manual_seed(1)
    scores = method.discriminator(step.teacher.pooled)
    by_student = F.gumbel_softmax(step.student.logits, 1.0)
    by_teacher = F.gumbel_softmax(step.teacher.logits, 1.0)
    forged = forged_score(scores, by_student) + forged_score(scores, by_teacher)
    value = true_score(scores, step.labels) + 0.5 * forged
    of_student, *of_discriminator = torch.autograd.grad(
        value, [step.student.logits, *method.discriminator.parameters()]
    )
    assert step.student.logits.grad is not None
    assert of_student.abs().max() > 0
    torch.testing.assert_close(step.student.logits.grad, of_student)
    for parameter, gradient in zip(method.discriminator.parameters(), of_discriminator, strict=True):
        torch.testing.assert_close(parameter.grad, -gradient)


def test_each_term_trains_one_side() -> None:
    step = example()
    method = made(step)
    terms = method.terms(step)
    inputs = [step.student.logits, *method.discriminator.parameters()]
    gradients = {
        name: torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        for name, value in terms.items()
    }
    assert [g is not None for g in gradients["discriminator"]] == [False, True, True, True, True]
    assert [g is not None for g in gradients["deception"]] == [True, False, False, False, False]


def test_scores_of_0_give_minus_log_2() -> None:
    scores, forged = torch.zeros(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64).softmax(1)
    assert true_score(scores, torch.tensor([0, 1, 2, 0])).item() == pytest.approx(-math.log(2))
    assert forged_score(scores, forged).item() == pytest.approx(-math.log(2))


def test_the_student_learns_the_classes_with_the_highest_scores() -> None:
    """The discriminator is fixed here."""
    torch.manual_seed(0)
    scores, logits = torch.randn(6, 3), torch.zeros(6, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(forged_score(scores, F.gumbel_softmax(logits, 1.0)))
        optimizer.step()
    assert torch.equal(logits.argmax(1), scores.argmax(1))


def test_forged_labels_are_drawn_from_the_logits() -> None:
    """The largest entry of a forged label is a draw from the softmax. A low temperature makes it one-hot."""
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(20000, 3)
    cold, warm = F.gumbel_softmax(logits, 0.01), F.gumbel_softmax(logits, 5.0)
    expected = logits[0].softmax(0)
    error = (expected * (1 - expected) / len(logits)).sqrt()
    assert ((cold.argmax(1).bincount() / len(logits) - expected).abs() < 4 * error).all()
    assert cold.max(1).values.mean() > 0.98
    assert warm.max(1).values.mean() < 0.6


def test_the_gradient_equals_finite_differences() -> None:
    step = example(batch=3)
    method = made(step, hidden=3)

    def both(student: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        named = dict(zip(dict(method.discriminator.named_parameters()), weights, strict=True))
        scores = torch.func.functional_call(method.discriminator, named, (step.teacher.pooled,))
        return forged_score(scores, F.gumbel_softmax(student, 1.0)), true_score(scores, step.labels)

    weights = [p.detach().clone().requires_grad_() for p in method.discriminator.parameters()]
    assert torch.autograd.gradcheck(both, (step.student.logits, *weights))


def test_the_same_seed_forges_the_same_labels() -> None:
    step = example()
    method = made(step)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(method.terms(step)["deception"].item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(("batch", "classes"), [(1, 3), (3, 50)])
def test_one_image_or_more_classes_than_images_is_legal(batch: int, classes: int) -> None:
    step = example(batch=batch, classes=classes)
    torch.autograd.backward(torch.stack(list(made(step).terms(step).values())).sum())
    assert step.student.logits.grad is not None
    assert step.student.logits.grad.isfinite().all()


def test_a_teacher_of_other_classes_forges_no_labels() -> None:
    step = step_of(noise(5, 3), noise(5, 4), noise(5, 6), [0, 1, 2, 0, 1])
    with pytest.raises(
        ValueError,
        match=r"method\.share is 0\.5.*teacher has 4 classes and the student 3\. Set method\.share to 1",
    ):
        made(step, kd_weight=0)
    assert set(made(step, kd_weight=0, share=1.0).terms(step)) == {"discriminator", "deception"}


def test_the_discriminator_learns_to_recognise_labels_of_a_fixed_student() -> None:
    world = World.make()
    method = world.method("kdgan", hidden=16)
    assert isinstance(method, KDGAN)
    step = world.step(16)
    optimizer, values = torch.optim.Adam(method.discriminator.parameters(), 0.05), []
    for _ in range(60):
        optimizer.zero_grad()
        value = method.terms(step)["discriminator"]
        torch.autograd.backward(value, retain_graph=True)
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
