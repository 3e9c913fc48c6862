import math
from functools import partial

import pytest
import torch
from world import noise, terms_of_logits

from pipeline.methods.mlkd import MultiLevel

terms = partial(terms_of_logits, MultiLevel)
Rows = list[list[float]]


def slow_softmax(rows: Rows, tau: float) -> Rows:
    powers = [[math.exp(z / tau) for z in row] for row in rows]
    return [[power / sum(row) for power in row] for row in powers]


def slow(student: Rows, teacher: Rows, temperatures: list[float]) -> dict[str, float]:
    images, classes = range(len(student)), range(len(student[0]))
    found = {"instance": 0.0, "batch": 0.0, "class": 0.0}
    for tau in temperatures:
        p, q = slow_softmax(teacher, tau), slow_softmax(student, tau)
        for i in images:
            kl = sum(p[i][c] * math.log(p[i][c] / q[i][c]) for c in classes)
            found["instance"] += tau**2 * kl / len(images)
        for i in images:
            for j in images:
                ours, theirs = (sum(x[i][c] * x[j][c] for c in classes) for x in (q, p))
                found["batch"] += (ours - theirs) ** 2 / len(images)
        for c in classes:
            for d in classes:
                ours, theirs = (sum(x[i][c] * x[i][d] for i in images) for x in (q, p))
                found["class"] += (ours - theirs) ** 2 / len(classes)
    return found


@pytest.mark.parametrize("temperatures", [[1.0], [2.0, 3.0, 4.0, 5.0, 6.0]])
def test_the_terms_equal_the_slow_loop(temperatures: list[float]) -> None:
    torch.manual_seed(0)
    student, teacher = 3 * noise(5, 4), 3 * noise(5, 4)
    found = terms(student, teacher, temperatures=temperatures)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        slow(student.tolist(), teacher.tolist(), temperatures), rel=1e-9
    )


def test_by_default_the_terms_are_sums_over_five_temperatures() -> None:
    student, teacher = noise(5, 4), noise(5, 4)
    each = [terms(student, teacher, temperatures=[tau]) for tau in (2.0, 3.0, 4.0, 5.0, 6.0)]
    for name, value in terms(student, teacher).items():
        assert value.item() == pytest.approx(sum(found[name].item() for found in each))


def test_levels_see_what_is_left_out_at_other_levels() -> None:
    """Other classes in the same relation are seen by `class` alone, other images by `batch` alone."""
    teacher = noise(4, 3)
    renamed = terms(teacher[:, [1, 2, 0]], teacher)  # the classes change their names
    assert renamed["batch"].item() == pytest.approx(0, abs=1e-12)
    assert renamed["class"] > 1e-4
    swapped = terms(teacher[[1, 2, 3, 0]], teacher)  # the images change their places
    assert swapped["class"].item() == pytest.approx(0, abs=1e-12)
    assert swapped["batch"] > 1e-4
    assert min(renamed["instance"], swapped["instance"]) > 0.1


def test_the_order_of_the_images_does_not_matter() -> None:
    student, teacher = noise(5, 4), noise(5, 4)
    expected = {name: value.item() for name, value in terms(student, teacher).items()}
    found = {name: value.item() for name, value in terms(student.flip(0), teacher.flip(0)).items()}
    assert found == pytest.approx(expected)


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(3, 4).requires_grad_(), noise(3, 4)
    assert torch.autograd.gradcheck(lambda s: tuple(terms(s, teacher).values()), (student,))


@pytest.mark.parametrize(
    ("temperatures", "message"), [([], "at least 1 item"), ([2.0, 0.0], "must be greater than 0")]
)
def test_temperatures_that_say_nothing_are_refused(temperatures: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=rf"temperatures\n.*{message}"):
        terms(noise(2, 3), noise(2, 3), temperatures=temperatures)
