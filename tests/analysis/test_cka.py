import math

import pytest
import torch
from torch import Tensor

from pipeline.analysis.cka import batchwise_cka
from pipeline.taps.answer import Answer

Rows = list[list[float]]


def answer(*maps: Tensor) -> Answer:
    named = {f"stage{n}": features for n, features in enumerate(maps, start=1)}
    return Answer(torch.zeros(len(maps[0]), 2), named, torch.zeros(0), {})


def embedding(count: int, width: int) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def cka_of(x: Tensor, y: Tensor) -> float:
    """Of two features of one batch."""
    return batchwise_cka([(answer(x), answer(y))]).item()


def kernel(x: Tensor) -> Rows:
    rows = x.flatten(1).tolist()
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]


def slow_unbiased_hsic(k: Rows, m: Rows) -> float:
    """HSIC_1 of Song et al., 2012."""
    n = len(k)
    k, m = ([[0.0 if i == j else each[i][j] for j in range(n)] for i in range(n)] for each in (k, m))
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, m)) / ((n - 1) * (n - 2))
    mixed = sum(k[i][p] * m[p][j] for i in range(n) for j in range(n) for p in range(n))
    return (trace + sums - 2 / (n - 2) * mixed) / (n * (n - 3))


def plain_cka(x: Tensor, y: Tensor) -> float:
    """With the biased HSIC, as in Kornblith et al., 2019."""
    x, y = x - x.mean(0), y - y.mean(0)
    value: float = ((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()
    return value


@pytest.mark.parametrize("sizes", [(5, 7), (4,)])
def test_cka_of_each_map_with_each_equals_the_slow_loop(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    batches = [
        (
            answer(torch.randn(n, 3, 2, 2) + 3, embedding(n, 2)),
            answer(embedding(n, 6), torch.randn(n, 1, 3, 1)),
        )
        for n in sizes
    ]
    table = batchwise_cka(batches)
    assert table.shape == (2, 2)
    for s in (1, 2):
        for t in (1, 2):
            sums = [0.0, 0.0, 0.0]
            for student, teacher in batches:
                k, m = (kernel(a.maps[f"stage{n}"].double()) for a, n in ((student, s), (teacher, t)))
                for n, pair in enumerate(((k, m), (k, k), (m, m))):
                    sums[n] += slow_unbiased_hsic(*pair)
            expected = sums[0] / math.sqrt(sums[1] * sums[2])
            assert table[s - 1, t - 1].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [5, 30])
def test_rotation_scale_and_shift_change_nothing(count: int) -> None:
    torch.manual_seed(0)
    x, y = embedding(count, 6), embedding(count, 5)
    rotated = 2.5 * x @ torch.linalg.qr(embedding(6, 6)).Q - 4
    assert cka_of(x, rotated) == pytest.approx(1)
    assert cka_of(rotated, y) == pytest.approx(cka_of(x, y))
    assert cka_of(y, x) == pytest.approx(cka_of(x, y))
    assert cka_of(x, y) < 0.9
    assert cka_of(x, x @ embedding(6, 6)) < 0.99


def test_features_that_have_nothing_in_common_are_near_0() -> None:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(embedding(400, 8)).Q  # orthogonal columns
    assert cka_of(rotation[:, :4], rotation[:, 4:]) == pytest.approx(0, abs=0.02)


def test_features_that_never_change_are_at_0() -> None:
    other = torch.randn(7, 3)
    assert cka_of(torch.ones(7, 2), other) == cka_of(torch.zeros(7, 2), other) == 0
    always = torch.full((9, 3), 0.1, dtype=torch.float64)  # its mean is another number, by rounding
    assert cka_of(always, always) == cka_of(always, torch.randn(9, 3)) == 0
    same = answer(embedding(6, 3), torch.ones(6, 2))
    table = batchwise_cka([(same, same), (same, same)])
    assert table[0, 0].item() == pytest.approx(1)
    assert table[0, 1] == table[1, 1] == 0


def test_batchwise_cka_does_not_depend_on_the_size_of_the_batches() -> None:
    """With few instances of features that have little in common, plain CKA is much too large."""
    torch.manual_seed(0)
    both = embedding(1600, 1)
    x, y = torch.cat([both, embedding(1600, 30)], 1), torch.cat([both, embedding(1600, 30)], 1)

    def in_batches_of(size: int) -> float:
        starts = range(0, len(x), size)
        return batchwise_cka((answer(x[n : n + size]), answer(y[n : n + size])) for n in starts).item()

    assert plain_cka(x[:16], y[:16]) > 0.4
    assert in_batches_of(16) == pytest.approx(plain_cka(x, y), abs=0.03)
    assert in_batches_of(16) == pytest.approx(in_batches_of(100), abs=0.02)


def test_small_batches_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="at least four"):
        cka_of(embedding(3, 2), embedding(3, 2))
