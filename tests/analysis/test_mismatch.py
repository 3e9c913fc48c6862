import pytest
import torch
from torch import Tensor

from pipeline.analysis.mismatch import mismatch
from pipeline.taps.answer import Answer


def answer(**maps: Tensor) -> Answer:
    return Answer(torch.zeros(0), maps, torch.zeros(0), {})


def slow_score(student: Answer, teacher: Answer, weights: dict[tuple[str, str], float]) -> float:
    total = 0.0
    for (s, t), weight in weights.items():
        a, b = student.maps[s].flatten(1).tolist(), teacher.maps[t].flatten(1).tolist()
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
    student = answer(stage1=torch.randn(3, 2, 4, 4), stage2=torch.randn(3, 3, 2, 2))
    teacher = answer(stage1=torch.randn(3, 2, 3, 3), stage2=torch.randn(3, 5, 1, 2))
    weights = {("stage1", "stage1"): 0.2, ("stage1", "stage2"): 0.8, ("stage2", "stage2"): 1.0}
    assert mismatch(student, teacher, weights) == pytest.approx(
        slow_score(student, teacher, weights), rel=1e-9
    )


def test_equal_or_rotated_maps_have_no_mismatch() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 6, 1, 1, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    rotated = torch.einsum("oc,bchw->bohw", rotation, features)
    pair = {("stage1", "stage1"): 1.0}
    assert mismatch(answer(stage1=features), answer(stage1=features), pair) == 0
    assert mismatch(answer(stage1=rotated), answer(stage1=features), pair) < 1e-20


def test_the_score_grows_with_the_fourth_power_of_the_scale() -> None:
    a, b = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    pair = {("stage1", "stage1"): 1.0}
    once, thrice = (mismatch(answer(stage1=k * a), answer(stage1=k * b), pair) for k in (1, 3))
    assert thrice == pytest.approx(81 * once, rel=1e-5)


def test_weights_of_a_half_make_half_of_the_score() -> None:
    student, teacher = (
        answer(stage1=torch.randn(3, 2, 2, 2), stage2=torch.randn(3, 4, 1, 1)) for _ in range(2)
    )
    pairs = [(s, t) for s in student.maps for t in teacher.maps]
    assert mismatch(student, teacher, dict.fromkeys(pairs, 0.5)) == pytest.approx(
        mismatch(student, teacher, dict.fromkeys(pairs, 1.0)) / 2
    )
