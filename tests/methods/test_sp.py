from functools import partial

import pytest
import torch
from torch import Tensor
from world import method_on_maps, noise

from pipeline.methods.sp import SimilarityPreserving

made = partial(method_on_maps, SimilarityPreserving)


def term(student: Tensor, teacher: Tensor) -> Tensor:
    method, step = made({"last": student}, {"last": teacher})
    return method.terms(step)["similarity"]


def slow_similarity(features: Tensor) -> list[list[float]]:
    flat = features.flatten(1).tolist()
    gram = [[sum(p * q for p, q in zip(a, b, strict=True)) for b in flat] for a in flat]
    return [[value / sum(v**2 for v in row) ** 0.5 for value in row] for row in gram]


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = noise(4, 2, 3, 3), noise(4, 5, 2, 2)
    g_s, g_t = slow_similarity(student), slow_similarity(teacher)
    slow = sum((g_s[i][j] - g_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 4**2
    assert term(student, teacher).item() == pytest.approx(slow, rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = noise(4, 2, 3, 3)
    assert term(same, same).item() == 0


def test_scale_and_rotation_do_not_matter() -> None:
    student, teacher = noise(4, 2, 3, 3), noise(4, 2, 3, 3)
    rotation = torch.linalg.qr(noise(18, 18))[0]
    turned = (5 * student.flatten(1) @ rotation).view(4, 2, 3, 3)
    assert term(turned, teacher).item() == pytest.approx(term(student, teacher).item())


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = noise(3, 2, 2, 2).requires_grad_(), noise(3, 4, 1, 1)
    assert torch.autograd.gradcheck(lambda s: term(s, teacher), (student,))


def test_one_image_has_nothing_to_learn() -> None:
    student = noise(1, 2, 2, 2).requires_grad_()
    value = term(student, noise(1, 3, 1, 1))
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(0, abs=1e-20)


def test_the_last_map_is_matched_if_none_is_named() -> None:
    shown = {"stem": noise(2, 1, 4, 4), "stage1": noise(2, 1, 2, 2)}
    assert made(shown, shown)[0].pairs == [("stage1", "stage1")]
    assert made(shown, shown, teacher_map="stem")[0].pairs == [("stage1", "stem")]


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The teacher has no map to match\. Under `taps` of that network"):
        made({"stem": noise(2, 1, 4, 4)}, {})
