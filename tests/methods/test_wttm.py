import math
from functools import partial

import pytest
import torch
from world import noise, terms_of_logits

from pipeline.functional import softened_kl
from pipeline.methods.wttm import WeightedTransformedTeacher, power_sum

terms = partial(terms_of_logits, WeightedTransformedTeacher)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 1.0])
def test_the_term_equals_the_slow_loop(gamma: float) -> None:
    torch.manual_seed(0)
    student, teacher = 3 * noise(5, 4), 3 * noise(5, 4)
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        e_s, e_t = ([math.exp(z) for z in row] for row in (z_s, z_t))
        powers = [(e / sum(e_t)) ** gamma for e in e_t]
        softened = [power / sum(powers) for power in powers]
        divergence = sum(p * math.log(p / (e / sum(e_s))) for p, e in zip(softened, e_s, strict=True))
        total += sum(powers) * divergence
    found = terms(student, teacher, temperature=1 / gamma)
    assert found["transformed"].item() == pytest.approx(total / 5, rel=1e-9)


def test_at_temperature_1_all_images_weigh_1_and_it_is_plain_kl() -> None:
    student, teacher = noise(5, 4), noise(5, 4)
    assert power_sum(teacher, 1.0).tolist() == pytest.approx([1] * 5)
    assert terms(student, teacher, temperature=1.0)["transformed"].item() == pytest.approx(
        softened_kl(student, teacher, 1.0).item(), rel=1e-9
    )


def test_a_sure_teacher_weighs_1_and_one_without_an_opinion_most() -> None:
    logits = torch.tensor([[500.0, 0, 0, 0], [0, 0, 0, 0], [9, 9, 9, 9], [3, 2, 1, 0]])
    weights = power_sum(logits, 2.0).tolist()
    assert weights[:3] == pytest.approx([1, 2, 2])  # 4^(1 - 1/2)
    assert 1 < weights[3] < 2


def test_the_logarithm_of_the_weight_is_the_renyi_entropy() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    entropy = math.log(sum(value**0.2 for value in p.tolist())) / (1 - 0.2)
    assert power_sum(p.log()[None], 5.0).log().item() == pytest.approx((1 - 0.2) * entropy)


def test_images_that_the_teacher_is_unsure_of_count_more() -> None:
    """The gradient of an image in the batch is its gradient alone, times its weight."""
    student, teacher = noise(2, 4), torch.tensor([[9.0, 0, 0, 0], [1, 0, 0, 0]]).double()
    together = student.clone().requires_grad_()
    torch.autograd.backward(terms(together, teacher)["transformed"])
    assert together.grad is not None
    softened = (teacher / 5).softmax(1)
    expected = power_sum(teacher, 5.0)[:, None] * (student.softmax(1) - softened) / 2
    torch.testing.assert_close(together.grad, expected)


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(3, 4).requires_grad_(), noise(3, 4)
    assert torch.autograd.gradcheck(lambda s: terms(s, teacher)["transformed"], (student,))
