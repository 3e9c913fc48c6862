import math
from functools import partial

import pytest
import torch
from world import noise, terms_of_logits

from pipeline.functional import softened_kl
from pipeline.methods.dkd import Decoupled

terms = partial(terms_of_logits, Decoupled)
Rows = list[list[float]]


def softmax(row: list[float], tau: float) -> list[float]:
    powers = [math.exp(z / tau) for z in row]
    return [power / sum(powers) for power in powers]


def slow(student: Rows, teacher: Rows, labels: list[int], tau: float) -> tuple[float, float]:
    """TCKD and NCKD: means over the batch, times tau squared."""
    target = others = 0.0
    for z_s, z_t, label in zip(student, teacher, labels, strict=True):
        p_s, p_t = softmax(z_s, tau), softmax(z_t, tau)
        sure_s, sure_t = p_s[label], p_t[label]
        target += sure_t * math.log(sure_t / sure_s)
        target += (1 - sure_t) * math.log((1 - sure_t) / (1 - sure_s))
        for c in range(len(z_s)):
            if c != label:
                q_s, q_t = p_s[c] / (1 - sure_s), p_t[c] / (1 - sure_t)
                others += q_t * math.log(q_t / q_s)
    return tau**2 * target / len(student), tau**2 * others / len(student)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_terms_equal_the_slow_loop(tau: float) -> None:
    torch.manual_seed(0)
    student, teacher, labels = 3 * noise(5, 4), 3 * noise(5, 4), torch.tensor([0, 3, 1, 2, 3])
    target, others = slow(student.tolist(), teacher.tolist(), labels.tolist(), tau)
    found = terms(student, teacher, labels, temperature=tau, target_weight=0.5, others_weight=3.0)
    assert found["target"].item() == pytest.approx(0.5 * target, rel=1e-9)
    assert found["others"].item() == pytest.approx(3 * others, rel=1e-9)


def test_with_the_weights_that_kd_has_the_terms_are_kd() -> None:
    """`TCKD + (1 - p_target of the teacher) * NCKD`, image by image."""
    torch.manual_seed(0)
    for label in range(4):
        student, teacher = 2 * noise(1, 4), 2 * noise(1, 4)
        hidden = 1 - softmax(teacher[0].tolist(), 4.0)[label]
        found = terms(student, teacher, torch.tensor([label]), target_weight=1.0, others_weight=hidden)
        expected = softened_kl(student, teacher, 4.0).item()
        assert sum(value.item() for value in found.values()) == pytest.approx(expected, rel=1e-9)


def test_between_two_classes_there_is_nothing_but_the_target() -> None:
    student, teacher, labels = noise(3, 2), noise(3, 2), torch.tensor([0, 1, 1])
    found = terms(student, teacher, labels)
    assert found["target"].item() == pytest.approx(softened_kl(student, teacher, 4.0).item())
    assert found["others"].item() == pytest.approx(0, abs=1e-12)


def test_each_term_is_blind_to_what_the_other_reads() -> None:
    student, labels = noise(3, 4), torch.tensor([0, 0, 0])
    raised = student + torch.tensor([7.0, 0, 0, 0])  # only the target's logit differs
    first, second = terms(student, student, labels), terms(raised, student, labels)
    assert second["others"].item() == pytest.approx(first["others"].item(), abs=1e-12)
    assert second["target"].item() > 1
    log_sum = student[:, 1:].logsumexp(1, keepdim=True)
    shuffled = torch.cat([student[:, :1], student[:, 1:].flip(1)], 1)
    assert torch.allclose(shuffled[:, 1:].logsumexp(1, keepdim=True), log_sum)
    third = terms(shuffled, student, labels)
    assert third["target"].item() == pytest.approx(0, abs=1e-12)
    assert third["others"].item() > 0.1


def test_the_others_count_the_same_however_sure_the_teacher_is() -> None:
    student, teacher, labels = noise(3, 4), noise(3, 4), torch.tensor([1, 1, 1])
    sure = teacher + torch.tensor([0, 60.0, 0, 0])
    expected = terms(student, teacher, labels)["others"].item()
    assert terms(student, sure, labels)["others"].item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher, labels = noise(3, 4).requires_grad_(), noise(3, 4), torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: tuple(terms(s, teacher, labels).values()), (student,))


@pytest.mark.parametrize("setting", ["target_weight", "others_weight", "warm_up"])
def test_a_negative_weight_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}\n.*greater than or equal to 0"):
        terms(noise(2, 3), noise(2, 3), **{setting: -0.1})
