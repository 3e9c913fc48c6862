from typing import Any

import pytest
import torch
from torch import Tensor
from world import step_of_maps

from pipeline.methods.sp import SimilarityPreserving
from pipeline.taps import Step


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def made(student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any) -> tuple[SimilarityPreserving, Step]:
    step = step_of_maps(student, teacher)
    return SimilarityPreserving(SimilarityPreserving.Config(name="sp", **settings), step, torch.zeros(2)), step


def term(student: Tensor, teacher: Tensor) -> Tensor:
    method, step = made({"last": student}, {"last": teacher})
    return method.terms(step)["similarity"]


def slow_similarity(features: Tensor) -> list[list[float]]:
    flat = features.flatten(1).tolist()
    gram = [[sum(p * q for p, q in zip(a, b, strict=True)) for b in flat] for a in flat]
    return [[value / sum(v**2 for v in row) ** 0.5 for value in row] for row in gram]


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = maps(4, 2, 3, 3), maps(4, 5, 2, 2)
    g_s, g_t = slow_similarity(student), slow_similarity(teacher)
    slow = sum((g_s[i][j] - g_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 4**2
    assert term(student, teacher).item() == pytest.approx(slow, rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = maps(4, 2, 3, 3)
    assert term(same, same).item() == 0


def test_scale_and_rotation_do_not_matter() -> None:
    student, teacher = maps(4, 2, 3, 3), maps(4, 2, 3, 3)
    rotation = torch.linalg.qr(maps(18, 18))[0]
    turned = (5 * student.flatten(1) @ rotation).view(4, 2, 3, 3)
    assert term(turned, teacher).item() == pytest.approx(term(student, teacher).item())


def test_gradcheck() -> None:
    student, teacher = maps(3, 2, 2, 2).requires_grad_(), maps(3, 4, 1, 1)
    assert torch.autograd.gradcheck(lambda s: term(s, teacher), (student,))


def test_one_instance_is_like_every_other_one() -> None:
    student = maps(1, 2, 2, 2).requires_grad_()
    value = term(student, maps(1, 3, 1, 1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-20)


def test_the_last_stage_is_meant_unless_another_is_named() -> None:
    stages = {"stem": maps(2, 1, 4, 4), "stage1": maps(2, 1, 2, 2)}
    method, _ = made(stages, stages, teacher_stage="stem")
    assert method.pairs == [("stage1", "stem")]


def test_a_stage_that_is_not_there_is_refused() -> None:
    stages = {"stem": maps(2, 1, 4, 4), "stage1": maps(2, 1, 2, 2)}
    with pytest.raises(ValueError, match=r"method\.student_stage: there is no 'stag1'. Did you mean 'stage1'"):
        made(stages, stages, student_stage="stag1")
    with pytest.raises(ValueError, match=r"method\.teacher_stage: the network shows no stage.*taps"):
        made(stages, {})
