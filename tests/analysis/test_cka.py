import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.analysis.cka import batchwise_cka, cka, stage_cka
from pipeline.taps import View

Rows = list[list[float]]


def view(*stages: Tensor) -> View:
    named = {f"stage{n}": stage for n, stage in enumerate(stages, start=1)}
    return View(torch.zeros(len(stages[0]), 2), named, torch.zeros(0), {})


def embedding(count: int, width: int) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def kernel(x: Tensor) -> Rows:
    rows = x.flatten(1).tolist()
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]


def slow_hsic(k: Rows, m: Rows) -> float:
    """tr(K H L H), H = I - 1 / n: without a factor that cancels."""
    n = len(k)
    h = [[(i == j) - 1 / n for j in range(n)] for i in range(n)]

    def product(a: Rows, b: Rows) -> Rows:
        return [[sum(a[i][p] * b[p][j] for p in range(n)) for j in range(n)] for i in range(n)]

    whole = product(product(k, h), product(m, h))
    return sum(whole[i][i] for i in range(n))


def slow_unbiased_hsic(k: Rows, m: Rows) -> float:
    """HSIC_1 of Song et al., 2012."""
    n = len(k)
    k, m = ([[0.0 if i == j else each[i][j] for j in range(n)] for i in range(n)] for each in (k, m))
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, m)) / ((n - 1) * (n - 2))
    mixed = sum(k[i][p] * m[p][j] for i in range(n) for j in range(n) for p in range(n))
    return (trace + sums - 2 / (n - 2) * mixed) / (n * (n - 3))


def slow_cka(x: Tensor, y: Tensor, hsic: Callable[[Rows, Rows], float] = slow_hsic) -> float:
    k, m = kernel(x), kernel(y)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("count", "width", "other"), [(5, 3, 2), (4, 9, 7), (5, 3, 9), (2, 2, 2)])
def test_cka_equals_the_slow_loop(count: int, width: int, other: int) -> None:
    torch.manual_seed(0)
    x, y = embedding(count, width) + 3, embedding(count, other)
    assert cka(x, y).item() == pytest.approx(slow_cka(x, y), rel=1e-9)


@pytest.mark.parametrize("count", [4, 30])
def test_turning_scaling_and_shifting_change_nothing(count: int) -> None:
    torch.manual_seed(0)
    x, y = embedding(count, 6), embedding(count, 5)
    turned = 2.5 * x @ torch.linalg.qr(embedding(6, 6)).Q - 4
    assert cka(x, turned).item() == pytest.approx(1)
    assert cka(turned, y).item() == pytest.approx(cka(x, y).item())
    assert cka(y, x).item() == pytest.approx(cka(x, y).item())
    assert 0 < cka(x, y) < 1
    assert cka(x, x @ embedding(6, 6)) < 0.99


def test_what_has_nothing_in_common_is_at_0() -> None:
    x, y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert cka(x, y) == 0
    assert cka(x, torch.ones(4, 3)) == cka(torch.ones(1, 3), torch.ones(1, 3)) == 0
    always = torch.full((7, 3), 0.1, dtype=torch.float64)  # rounding makes its mean another number
    assert stage_cka(view(always), view(torch.randn(7, 3))) == 0
    assert batchwise_cka([(view(always), view(torch.randn(7, 3)))]) == 0


def test_stages_are_compared_each_with_each() -> None:
    torch.manual_seed(0)
    student, teacher = (
        view(torch.randn(4, 2, 3, 3), torch.randn(4, 3, 2, 2)),
        view(torch.randn(4, 1, 2, 2), torch.ones(4, 1, 2, 2), torch.randn(4, 5, 1, 1)),
    )
    table = stage_cka(student, teacher)
    for row, s in zip(table, student.stages.values(), strict=True):
        for value, t in zip(row, teacher.stages.values(), strict=True):
            assert value.item() == pytest.approx(cka(s, t).item(), rel=1e-9, abs=1e-12)
    assert table[0, 1] == 0
    assert torch.allclose(stage_cka(student, student).diagonal(), torch.ones(2).double())


def test_batchwise_cka_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    batches = [(view(embedding(n, 3), embedding(n, 2)), view(embedding(n, 6))) for n in (5, 7)]
    table = batchwise_cka(batches)
    assert table.shape == (2, 1)
    for s in (1, 2):
        sums = [0.0, 0.0, 0.0]
        for student, teacher in batches:
            k, m = kernel(student.stages[f"stage{s}"]), kernel(teacher.stages["stage1"])
            for n, pair in enumerate(((k, m), (k, k), (m, m))):
                sums[n] += slow_unbiased_hsic(*pair)
        assert table[s - 1, 0].item() == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-9)


def test_batchwise_cka_does_not_depend_on_the_size_of_batches() -> None:
    """Of features that have little in common, few instances make plain CKA much too large."""
    torch.manual_seed(0)
    both = embedding(1600, 1)
    x, y = torch.cat([both, embedding(1600, 30)], 1), torch.cat([both, embedding(1600, 30)], 1)

    def of(size: int) -> float:
        return batchwise_cka((view(a), view(b)) for a, b in zip(x.split(size), y.split(size), strict=True)).item()

    assert cka(x[:16], y[:16]) > 0.4
    assert of(16) == pytest.approx(cka(x, y).item(), abs=0.03)
    assert of(16) == pytest.approx(of(100), abs=0.02)


def test_batchwise_cka_of_the_same_is_1_and_of_what_never_changes_0() -> None:
    student = view(embedding(6, 3), torch.ones(6, 2))
    table = batchwise_cka([(student, student), (student, student)])
    assert table[0, 0].item() == pytest.approx(1)
    assert table[0, 1] == table[1, 1] == 0
