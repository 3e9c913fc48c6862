import pytest
import torch
from torch import Tensor

from pipeline.analysis.mismatch import mismatch
from pipeline.taps import View


def view(**stages: Tensor) -> View:
    return View(torch.zeros(0), stages, torch.zeros(0), {})


def slow_score(student: View, teacher: View, weights: dict[tuple[str, str], float]) -> float:
    total = 0.0
    for (s, t), weight in weights.items():
        a, b = student.stages[s].flatten(1).tolist(), teacher.stages[t].flatten(1).tolist()
        squares = []
        for i in range(len(a)):
            for j in range(len(a)):
                ours = sum(p * q for p, q in zip(a[i], a[j], strict=True))
                theirs = sum(p * q for p, q in zip(b[i], b[j], strict=True))
                squares.append((ours - theirs) ** 2)
        total += weight * sum(squares) / len(squares)
    return total / len(weights)


def test_the_score_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student = view(stage1=torch.randn(3, 2, 4, 4), stage2=torch.randn(3, 3, 2, 2))
    teacher = view(stage1=torch.randn(3, 2, 3, 3), stage2=torch.randn(3, 5, 1, 2))
    weights = {("stage1", "stage1"): 0.2, ("stage1", "stage2"): 0.8, ("stage2", "stage2"): 1.0}
    assert mismatch(student, teacher, weights) == pytest.approx(slow_score(student, teacher, weights), rel=1e-9)


def test_a_student_like_its_teacher_or_turned_has_none() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 6, 1, 1, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    turned = torch.einsum("oc,bchw->bohw", turn, features)
    pair = {("stage1", "stage1"): 1.0}
    assert mismatch(view(stage1=features), view(stage1=features), pair) == 0
    assert mismatch(view(stage1=turned), view(stage1=features), pair) < 1e-20


def test_it_grows_with_the_fourth_power_of_the_scale() -> None:
    a, b = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    pair = {("stage1", "stage1"): 1.0}
    once, thrice = (mismatch(view(stage1=k * a), view(stage1=k * b), pair) for k in (1, 3))
    assert thrice == pytest.approx(81 * once, rel=1e-5)


def test_equal_weights_that_sum_to_one_divide_the_score_by_their_number() -> None:
    student, teacher = (view(stage1=torch.randn(3, 2, 2, 2), stage2=torch.randn(3, 4, 1, 1)) for _ in range(2))
    pairs = [(s, t) for s in student.stages for t in teacher.stages]
    assert mismatch(student, teacher, dict.fromkeys(pairs, 0.5)) == pytest.approx(mismatch(student, teacher, dict.fromkeys(pairs, 1.0)) / 2)
