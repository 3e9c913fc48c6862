import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from world import World

from pipeline.methods.kdgan import KDGAN, forged_score, true_score
from pipeline.taps import Step, View


def view(logits: Tensor, pooled: Tensor) -> View:
    return View(logits, {}, pooled, {})


def step_of(student: Tensor, teacher: Tensor, pooled: Tensor, labels: list[int]) -> Step:
    of_student, of_teacher = view(student, pooled), view(teacher, pooled)
    return Step.of(student=of_student, teacher=of_teacher, labels=torch.tensor(labels), index=torch.arange(len(labels)))


def made(step: Step, **settings: Any) -> KDGAN:
    return KDGAN(KDGAN.Config.model_validate({"name": "kdgan", "hidden": 4, **settings}), step, step.labels).double()


def example(*, batch: int = 5, classes: int = 3) -> Step:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, batch, classes, dtype=torch.float64)
    labels = [n % classes for n in range(batch)]
    return step_of(student.requires_grad_(), teacher, torch.randn(batch, 6, dtype=torch.float64), labels)


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_the_terms_equal_the_slow_loop() -> None:
    step = example()
    method = made(step, share=0.3, sample_temperature=0.7)
    scores = method.discriminator(step.teacher.pooled).tolist()
    torch.manual_seed(1)
    terms = method.terms(step)
    torch.manual_seed(1)
    noise = [-torch.empty_like(step.student.logits, requires_grad=False).exponential_().log() for _ in range(2)]

    def forged(logits: Tensor, noise: Tensor, b: int) -> list[float]:
        raised = [math.exp((z + g) / 0.7) for z, g in zip(logits[b].tolist(), noise[b].tolist(), strict=True)]
        return [x / sum(raised) for x in raised]

    value = deception = 0.0
    for b, label in enumerate(step.labels.tolist()):
        student = sum(y * s for y, s in zip(forged(step.student.logits, noise[0].detach(), b), scores[b], strict=True))
        teacher = sum(y * s for y, s in zip(forged(step.teacher.logits, noise[1], b), scores[b], strict=True))
        deception += 0.3 * log_sigmoid(-student) / 5
        value += (log_sigmoid(scores[b][label]) + 0.3 * log_sigmoid(-student) + 0.7 * log_sigmoid(-teacher)) / 5
    assert terms["discriminator"].item() == pytest.approx(-value, rel=1e-9)
    assert terms["deception"].item() == pytest.approx(deception, rel=1e-9)


def test_one_backward_is_the_game() -> None:
    """The student goes down the value of the game, the discriminator up it, each as if the other stood still."""
    step = example()
    method = made(step)
    torch.manual_seed(1)
    torch.stack(list(method.terms(step).values())).sum().backward()
    torch.manual_seed(1)
    scores = method.discriminator(step.teacher.pooled)
    by_student, by_teacher = F.gumbel_softmax(step.student.logits, 1.0), F.gumbel_softmax(step.teacher.logits, 1.0)
    value = true_score(scores, step.labels) + 0.5 * forged_score(scores, by_student) + 0.5 * forged_score(scores, by_teacher)
    of_student, *of_discriminator = torch.autograd.grad(value, [step.student.logits, *method.discriminator.parameters()])
    assert step.student.logits.grad is not None
    assert of_student.abs().max() > 0
    torch.testing.assert_close(step.student.logits.grad, of_student)
    for parameter, gradient in zip(method.discriminator.parameters(), of_discriminator, strict=True):
        torch.testing.assert_close(parameter.grad, -gradient)


def test_each_term_trains_one_side() -> None:
    step = example()
    method = made(step)
    terms = method.terms(step)
    reach = [step.student.logits, *method.discriminator.parameters()]
    by_term = {name: torch.autograd.grad(value, reach, retain_graph=True, allow_unused=True) for name, value in terms.items()}
    assert [g is not None for g in by_term["discriminator"]] == [False, True, True, True, True]
    assert [g is not None for g in by_term["deception"]] == [True, False, False, False, False]


def test_a_discriminator_that_knows_nothing_gives_log_2() -> None:
    scores, forged = torch.zeros(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64).softmax(1)
    assert true_score(scores, torch.tensor([0, 1, 2, 0])).item() == pytest.approx(-math.log(2))
    assert forged_score(scores, forged).item() == pytest.approx(-math.log(2))


def test_the_student_learns_what_the_discriminator_believes() -> None:
    """Against a fixed discriminator the forged labels end where its scores are highest."""
    torch.manual_seed(0)
    scores, logits = torch.randn(6, 3), torch.zeros(6, 3, requires_grad=True)
    optimiser = torch.optim.Adam([logits], 0.1)
    for _ in range(200):
        optimiser.zero_grad()
        forged_score(scores, F.gumbel_softmax(logits, 1.0)).backward()
        optimiser.step()
    assert torch.equal(logits.argmax(1), scores.argmax(1))


def test_forged_labels_are_drawn_from_the_logits() -> None:
    """The strongest entry of a concrete sample is a draw from the softmax; towards temperature 0 the sample is one-hot."""
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(20000, 3)
    cold, warm = F.gumbel_softmax(logits, 0.01), F.gumbel_softmax(logits, 5.0)
    expected = logits[0].softmax(0)
    error = (expected * (1 - expected) / len(logits)).sqrt()
    assert ((cold.argmax(1).bincount() / len(logits) - expected).abs() < 4 * error).all()
    assert cold.max(1).values.mean() > 0.98
    assert warm.max(1).values.mean() < 0.6


def test_gradcheck() -> None:
    step = example(batch=3)
    method = made(step, hidden=3)

    def both(student: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        functional = dict(zip(dict(method.discriminator.named_parameters()), weights, strict=True))
        scores = torch.func.functional_call(method.discriminator, functional, (step.teacher.pooled,))
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
def test_one_image_and_more_classes_than_images(batch: int, classes: int) -> None:
    step = example(batch=batch, classes=classes)
    torch.stack(list(made(step).terms(step).values())).sum().backward()
    assert step.student.logits.grad is not None
    assert step.student.logits.grad.isfinite().all()


def test_a_teacher_of_other_classes_forges_nothing() -> None:
    student = example()
    step = step_of(student.student.logits.detach(), torch.randn(5, 4, dtype=torch.float64), student.teacher.pooled, [0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"method\.share is 0\.5.*4 classes apart and the student 3\. Set method\.share to 1"):
        made(step, kd_weight=0)
    assert set(made(step, kd_weight=0, share=1.0).terms(step)) == {"discriminator", "deception"}


def test_the_discriminator_gets_better_at_a_student_that_stands_still() -> None:
    world = World.make()
    method = world.method("kdgan", hidden=16)
    assert isinstance(method, KDGAN)
    step = world.step(16)
    optimiser, values = torch.optim.Adam(method.discriminator.parameters(), 0.05), []
    for _ in range(60):
        optimiser.zero_grad()
        value = method.terms(step)["discriminator"]
        value.backward(retain_graph=True)
        optimiser.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
