import math

import pytest
import torch
from torch import Tensor, nn
from world import World, noise

from pipeline.methods.aml import AsymmetricMetricLearning, Config, contrastive, triplet
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

FORMS = ["contrastive", "triplet"]


def answer(pooled: Tensor) -> Answer:
    return Answer(torch.zeros(len(pooled), 3, dtype=pooled.dtype), {}, pooled, {})


def step_of(student: Tensor, teacher: Tensor, labels: list[int]) -> Step:
    return Step.of(
        student=answer(student),
        teacher=answer(teacher),
        labels=torch.tensor(labels),
        index=torch.arange(len(labels)),
    )


def made(step: Step, form: str, **settings: float) -> AsymmetricMetricLearning:
    config = Config.model_validate({"name": "aml", "form": form, **settings})
    return AsymmetricMetricLearning(config, step, step.labels).double()


def term(step: Step, form: str, **settings: float) -> float:
    (value,) = made(step, form, **settings).terms(step).values()
    return value.item()


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow(
    student: list[list[float]], teacher: list[list[float]], labels: list[int], form: str, margin: float
) -> float:
    images = range(len(labels))
    positives = [(a, p) for a in images for p in images if labels[a] == labels[p]]
    negatives = [(a, n) for a in images for n in images if labels[a] != labels[n]]
    if form == "contrastive":
        pulls = [1 - cosine(student[a], teacher[p]) for a, p in positives]
        pushes = [max(0.0, cosine(student[a], teacher[n]) - margin) for a, n in negatives]
        return sum(pulls) / len(pulls) + sum(pushes) / len(pushes)
    triplets = [(a, p, n) for a, p in positives for b, n in negatives if a == b]
    hinges = [
        max(0.0, margin + cosine(student[a], teacher[n]) - cosine(student[a], teacher[p]))
        for a, p, n in triplets
    ]
    return sum(hinges) / len(hinges)


@pytest.mark.parametrize(
    ("form", "margin"), [("contrastive", 0.3), ("contrastive", -0.5), ("triplet", 0.1), ("triplet", 0.8)]
)
def test_the_term_equals_the_slow_loop(form: str, margin: float) -> None:
    torch.manual_seed(0)
    student, teacher = noise(2, 6, 4)
    labels = [0, 1, 0, 2, 0, 1]
    value = term(step_of(student, teacher, labels), form, **{f"{form}_margin": margin})
    assert value == pytest.approx(slow(student.tolist(), teacher.tolist(), labels, form, margin), rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_student_has_nothing_to_learn(form: str) -> None:
    """Each class has an axis of its own, and the student's embeddings point where the teacher's do."""
    embeddings = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]] * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    assert term(step_of(5 * embeddings, embeddings, [0, 1, 2, 0]), form) == pytest.approx(0, abs=1e-12)
    assert term(step_of(embeddings.roll(1, 0), embeddings, [0, 1, 2, 0]), form) > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_lengths_and_the_order_of_the_batch_do_not_matter(form: str) -> None:
    student, teacher = noise(2, 5, 4)
    labels, order = torch.tensor([0, 1, 1, 0, 2]), torch.randperm(5)
    value = term(step_of(student, teacher, labels.tolist()), form)
    assert value > 0
    assert term(step_of(7 * student, 0.1 * teacher, labels.tolist()), form) == pytest.approx(value)
    assert term(step_of(student[order], teacher[order], labels[order].tolist()), form) == pytest.approx(value)


@pytest.mark.parametrize("form", FORMS)
def test_the_anchors_come_from_the_student(form: str) -> None:
    """If student and teacher change places, the mean over triplets changes, but not that over pairs."""
    torch.manual_seed(0)
    student, teacher = noise(2, 4, 3)
    student[0] = teacher[1]
    labels = [0, 1, 1, 2]
    value = term(step_of(student, teacher, labels), form, triplet_margin=0.5)
    exchanged = term(step_of(teacher, student, labels), form, triplet_margin=0.5)
    assert (value == pytest.approx(exchanged)) == (form == "contrastive")


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_equals_finite_differences(form: str) -> None:
    torch.manual_seed(0)
    student, teacher = noise(4, 3).requires_grad_(), noise(4, 5)
    labels = [0, 1, 0, 1]
    method = made(
        step_of(student.detach(), teacher, labels), form, contrastive_margin=0.05, triplet_margin=0.3
    )
    assert torch.autograd.gradcheck(
        lambda s: next(iter(method.terms(step_of(s, teacher, labels)).values())), (student,)
    )


def test_the_student_is_projected_if_the_lengths_differ() -> None:
    student, teacher = noise(4, 3), noise(4, 5)
    method = made(step_of(student, teacher, [0, 1, 0, 1]), "contrastive")
    assert isinstance(method.project, nn.Linear)
    (value,) = method.terms(step_of(student, teacher, [0, 1, 0, 1])).values()
    projected = (student @ method.project.weight.T + method.project.bias).tolist()
    assert value.item() == pytest.approx(
        slow(projected, teacher.tolist(), [0, 1, 0, 1], "contrastive", 0.7), rel=1e-9
    )
    assert not list(made(step_of(teacher, teacher, [0, 1, 0, 1]), "contrastive").parameters())


@pytest.mark.parametrize("labels", [[4], [4, 4, 4], [0, 1, 2]])
def test_a_batch_without_negatives_or_other_positives_has_a_gradient(labels: list[int]) -> None:
    for form, function in (("contrastive", contrastive), ("triplet", triplet)):
        similarity = torch.rand(len(labels), len(labels), dtype=torch.float64, requires_grad=True)
        same = torch.tensor(labels)[:, None] == torch.tensor(labels)
        value = function(similarity, same, 0.5)
        torch.autograd.backward(value)
        assert value.isfinite()
        assert similarity.grad is not None
        assert similarity.grad.isfinite().all()
        if form == "triplet" and len(set(labels)) == 1:
            assert value.item() == 0


def test_the_triplet_form_works_with_networks() -> None:
    world = World.make()
    loss = world.method("aml", form="triplet").loss(world.step())
    assert loss["triplet"].value.requires_grad
    assert loss["triplet"].value.item() > 0


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="'contrastive' or 'triplet'"):
        Config.model_validate({"name": "aml", "form": "quadruplet"})
