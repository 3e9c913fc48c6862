import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from world import noise, terms_of_logits

from pipeline.methods.dist import StrongerTeacher, unrelatedness

terms = partial(terms_of_logits, StrongerTeacher)


def slow_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """`1 - covariance / (deviation * deviation)`."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    variances = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return 1 - covariance / math.sqrt(variances)


def slow_softmax(rows: list[list[float]], tau: float) -> list[list[float]]:
    powers = [[math.exp(z / tau) for z in row] for row in rows]
    return [[power / sum(row) for power in row] for row in powers]


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_terms_equal_the_slow_loop(tau: float) -> None:
    torch.manual_seed(0)
    student, teacher = 3 * noise(5, 4), 3 * noise(5, 4)
    y_s, y_t = slow_softmax(student.tolist(), tau), slow_softmax(teacher.tolist(), tau)
    rows = [slow_distance(s, t) for s, t in zip(y_s, y_t, strict=True)]
    columns = [slow_distance([row[c] for row in y_s], [row[c] for row in y_t]) for c in range(4)]
    found = terms(student, teacher, temperature=tau, inter_weight=0.5, intra_weight=3.0)
    assert found["inter"].item() == pytest.approx(0.5 * tau**2 * sum(rows) / 5, rel=1e-9)
    assert found["intra"].item() == pytest.approx(3 * tau**2 * sum(columns) / 4, rel=1e-9)


def test_scale_and_shift_of_a_row_do_not_matter_and_its_sign_does() -> None:
    student, teacher = noise(3, 5), noise(3, 5)
    expected = unrelatedness(student, teacher).item()
    scaled = (torch.rand(3, 1) + 0.5) * student + noise(3, 1)
    assert unrelatedness(scaled, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert unrelatedness(teacher, teacher).item() == 0
    assert unrelatedness(-teacher, teacher).item() == pytest.approx(2)


def test_a_less_sure_student_with_the_same_relations_is_nearly_as_good() -> None:
    """Unlike with KL: this is what the paper wants of it."""
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]], dtype=torch.float64)
    softer = probabilities / 2 + 1 / 6
    found = terms(softer.log(), probabilities.log(), temperature=1.0)
    assert [value.item() for value in found.values()] == pytest.approx([0, 0], abs=1e-9)


def test_one_image_relates_to_no_other() -> None:
    student = torch.randn(1, 4).requires_grad_()
    found = terms(student, torch.randn(1, 4))
    torch.autograd.backward(found["intra"])
    assert found["intra"].item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert found["inter"] > 0


def test_a_student_to_which_all_classes_or_images_are_alike_has_no_relations_and_a_finite_gradient() -> None:
    teacher, same_image = torch.randn(4, 5), torch.randn(1, 5).expand(4, 5).clone()
    for student, term in ((torch.full((4, 5), 0.3), "inter"), (same_image, "intra")):
        value = terms(student.requires_grad_(), teacher, temperature=1.0)[term]
        torch.autograd.backward(value)
        assert value.item() == pytest.approx(0.5)
        assert student.grad is not None
        assert student.grad.abs().max() < 10


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(4, 3).requires_grad_(), noise(4, 3)
    assert torch.autograd.gradcheck(lambda s: tuple(terms(s, teacher).values()), (student,))


@pytest.mark.parametrize("setting", ["inter_weight", "intra_weight"])
def test_a_negative_weight_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}\n.*greater than or equal to 0"):
        terms(noise(2, 3), noise(2, 3), **{setting: -0.1})
