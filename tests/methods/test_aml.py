import math

import pytest
import torch
from torch import Tensor, nn
from world import World

from pipeline.methods.aml import AsymmetricMetricLearning, contrastive, triplet
from pipeline.taps import Step, View

FORMS = ["contrastive", "triplet"]


def view(pooled: Tensor) -> View:
    return View(torch.zeros(len(pooled), 3, dtype=pooled.dtype), {}, pooled, {})


def step_of(student: Tensor, teacher: Tensor, labels: list[int]) -> Step:
    return Step.of(student=view(student), teacher=view(teacher), labels=torch.tensor(labels), index=torch.arange(len(labels)))


def made(step: Step, form: str, **settings: float) -> AsymmetricMetricLearning:
    config = AsymmetricMetricLearning.Config.model_validate({"name": "aml", "form": form, **settings})
    return AsymmetricMetricLearning(config, step, step.labels).double()


def term(step: Step, form: str, **settings: float) -> float:
    (value,) = made(step, form, **settings).terms(step).values()
    return value.item()


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow(student: list[list[float]], teacher: list[list[float]], labels: list[int], form: str, margin: float) -> float:
    everyone = range(len(labels))
    positives = [(a, p) for a in everyone for p in everyone if labels[a] == labels[p]]
    negatives = [(a, n) for a in everyone for n in everyone if labels[a] != labels[n]]
    if form == "contrastive":
        attracted = [1 - cosine(student[a], teacher[p]) for a, p in positives]
        repelled = [max(0.0, cosine(student[a], teacher[n]) - margin) for a, n in negatives]
        return sum(attracted) / len(attracted) + sum(repelled) / len(repelled)
    triplets = [(a, p, n) for a, p in positives for b, n in negatives if a == b]
    hinges = [max(0.0, margin + cosine(student[a], teacher[n]) - cosine(student[a], teacher[p])) for a, p, n in triplets]
    return sum(hinges) / len(hinges)


@pytest.mark.parametrize(("form", "margin"), [("contrastive", 0.3), ("contrastive", -0.5), ("triplet", 0.1), ("triplet", 0.8)])
def test_the_term_equals_the_slow_loop(form: str, margin: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    labels = [0, 1, 0, 2, 0, 1]
    value = term(step_of(student, teacher, labels), form, **{f"{form}_margin": margin})
    assert value == pytest.approx(slow(student.tolist(), teacher.tolist(), labels, form, margin), rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_student_in_a_perfect_space_has_nothing_to_learn(form: str) -> None:
    """Classes on orthogonal axes, the student where the teacher is."""
    embeddings = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]] * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    assert term(step_of(5 * embeddings, embeddings, [0, 1, 2, 0]), form) == pytest.approx(0, abs=1e-12)
    assert term(step_of(embeddings.roll(1, 0), embeddings, [0, 1, 2, 0]), form) > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_lengths_and_the_order_of_the_batch_do_not_matter(form: str) -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    labels, order = torch.tensor([0, 1, 1, 0, 2]), torch.randperm(5)
    value = term(step_of(student, teacher, labels.tolist()), form)
    assert value > 0
    assert term(step_of(7 * student, 0.1 * teacher, labels.tolist()), form) == pytest.approx(value)
    assert term(step_of(student[order], teacher[order], labels[order].tolist()), form) == pytest.approx(value)


@pytest.mark.parametrize("form", FORMS)
def test_student_and_teacher_do_not_change_places(form: str) -> None:
    """Anchors are the student's: were the roles exchanged, the value would be another."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
    student[0] = teacher[1]
    labels = [0, 1, 1, 2]
    there = term(step_of(student, teacher, labels), form, triplet_margin=0.5)
    back = term(step_of(teacher, student, labels), form, triplet_margin=0.5)
    assert (there == pytest.approx(back)) == (form == "contrastive")  # means over symmetric sets of pairs, but not of triplets


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 5, dtype=torch.float64)
    labels = [0, 1, 0, 1]
    method = made(step_of(student.detach(), teacher, labels), form, contrastive_margin=0.05, triplet_margin=0.3)
    assert torch.autograd.gradcheck(lambda s: next(iter(method.terms(step_of(s, teacher, labels)).values())), (student,))


def test_the_student_is_projected_where_the_lengths_differ() -> None:
    student, teacher = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    method = made(step_of(student, teacher, [0, 1, 0, 1]), "contrastive")
    assert isinstance(method.project, nn.Linear)
    (value,) = method.terms(step_of(student, teacher, [0, 1, 0, 1])).values()
    projected = (student @ method.project.weight.T + method.project.bias).tolist()
    assert value.item() == pytest.approx(slow(projected, teacher.tolist(), [0, 1, 0, 1], "contrastive", 0.7), rel=1e-9)
    assert not list(made(step_of(teacher, teacher, [0, 1, 0, 1]), "contrastive").parameters())


@pytest.mark.parametrize("labels", [[4], [4, 4, 4], [0, 1, 2]])
def test_without_negatives_or_other_positives_there_is_still_a_gradient(labels: list[int]) -> None:
    for form, function in (("contrastive", contrastive), ("triplet", triplet)):
        similarity = torch.rand(len(labels), len(labels), dtype=torch.float64, requires_grad=True)
        same = torch.tensor(labels)[:, None] == torch.tensor(labels)
        value = function(similarity, same, 0.5)
        value.backward()
        assert value.isfinite()
        assert similarity.grad is not None
        assert similarity.grad.isfinite().all()
        if form == "triplet" and len(set(labels)) == 1:
            assert value.item() == 0


def test_the_triplet_form_runs_through_networks() -> None:
    world = World.make()
    loss = world.method("aml", form="triplet").loss(world.step())
    assert loss["triplet"].value.requires_grad
    assert loss["triplet"].value.item() > 0


def test_a_form_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'contrastive' or 'triplet'"):
        AsymmetricMetricLearning.Config.model_validate({"name": "aml", "form": "quadruplet"})
