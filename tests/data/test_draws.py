import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.data.draws import Draws, below, between, draws

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """SplitMix64 as published (Steele, Lea and Flood, 2014), in unbounded integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_draws_are_splitmix64() -> None:
    index = torch.tensor([0, 1, 2, 49_999, 2**40])
    found = torch.stack(draws(index, 3, 7), 1).tolist()
    state = int.from_bytes(hashlib.sha256(b"7:3").digest()[:8], "little")
    for n, expected in zip(index.tolist(), found, strict=True):
        bits = splitmix64((state + n * 0x9E3779B97F4A7C15) & MASK)
        assert [bits & 0x1FFFFF, bits >> 21 & 0x1FFFFF, bits >> 42 & 0x1FFFFF] == expected


@pytest.mark.parametrize("vary", ["index", "number", "seed"])
def test_draws_are_uniform_and_independent(vary: str) -> None:
    n = 9000
    if vary == "index":
        columns = torch.stack(draws(torch.arange(n), 4, 2))
    else:
        pairs = [(i, 2) if vary == "number" else (4, i) for i in range(n)]
        columns = torch.cat([torch.stack(draws(torch.tensor([17]), *pair)) for pair in pairs], 1)
    values = columns.numpy() / 2**21
    for each in values:
        assert stats.kstest(each, "uniform").pvalue > 1e-4
        assert stats.chisquare(np.bincount((each * 9).astype(int), minlength=9)).pvalue > 1e-4
        assert abs(np.corrcoef(each[:-1], each[1:])[0, 1]) < 4 / n**0.5  # neighbours are independent
    cells = (values[0] * 9).astype(int) * 18 + (values[1] * 9).astype(int) * 2 + (values[2] < 0.5)
    assert stats.chisquare(np.bincount(cells, minlength=162)).pvalue > 1e-4
    assert abs(np.corrcoef(values) - np.eye(3)).max() < 4 / n**0.5


def test_what_a_draw_is_for_changes_it_and_nothing_is_the_first_views() -> None:
    rows = torch.arange(50)
    plain, crop, mirror = draws(rows, 1, 2), draws(rows, 1, 2, "crop"), draws(rows, 1, 2, "mirror")
    for a, b in ((plain, crop), (crop, mirror), (plain, mirror)):
        assert not any(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(draws(rows[7:8], 1, 2, "crop")[1], crop[1][7:8])


def test_uniform_numbers_lie_from_0_to_below_1() -> None:
    for each in Draws(torch.arange(20_000), 0, 0).uniform("x"):
        assert each.min() >= 0
        assert each.max() < 1
        assert stats.kstest(each.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_something_happens_as_often_as_asked(probability: float) -> None:
    found = Draws(torch.arange(20_000), 3, 1).happens("blur", probability).float().mean().item()
    assert found == pytest.approx(probability, abs=0.015)


def test_below_and_between() -> None:
    draw = torch.tensor([0, 2**21 - 1, 2**20])
    assert below(draw, 5).tolist() == [0, 4, 2]
    assert between(torch.tensor([0.0, 0.5]), -1, 3).tolist() == [-1, 1]
