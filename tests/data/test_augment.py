import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from pipeline.data.augment import AugmentConfig, augment, draws

CFG = AugmentConfig(pad=3, flip=0.5)
MASK = 2**64 - 1


def images(count: int, *, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


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


def slowly(image: Tensor, drawn: list[int], cfg: AugmentConfig) -> Tensor:
    down, right, mirror = drawn
    y, x = down * (2 * cfg.pad + 1) >> 21, right * (2 * cfg.pad + 1) >> 21
    cut = F.pad(image, (cfg.pad,) * 4)[:, y : y + image.shape[1], x : x + image.shape[2]]
    return cut.flip(2) if mirror / 2**21 < cfg.flip else cut


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (3, 1, 1)])
@pytest.mark.parametrize(
    "cfg", [CFG, AugmentConfig(pad=0, flip=0.5), AugmentConfig(pad=4, flip=0), AugmentConfig(pad=1, flip=1)]
)
def test_views_are_those_of_a_slow_crop_and_flip(shape: tuple[int, int, int], cfg: AugmentConfig) -> None:
    batch, index = images(40, channels=shape[0], height=shape[1], width=shape[2]), torch.arange(40) * 7
    found = augment(batch, index, 5, 11, cfg)
    for image, result, drawn in zip(batch, found, torch.stack(draws(index, 5, 11), 1).tolist(), strict=True):
        assert torch.equal(result, slowly(image, drawn, cfg))


def test_without_shift_and_mirror_nothing_changes() -> None:
    batch = images(6)
    assert torch.equal(augment(batch, torch.arange(6), 0, 0, AugmentConfig(pad=0, flip=0)), batch)


def test_a_view_depends_on_seed_index_and_number_alone() -> None:
    batch, index = images(32), torch.arange(32) + 1000
    whole = augment(batch, index, 2, 9, CFG)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(batch[order], index[order], 2, 9, CFG), whole[order])
    torch.manual_seed(123)
    assert torch.equal(
        torch.cat([augment(batch[i : i + 1], index[i : i + 1], 2, 9, CFG) for i in range(32)]), whole
    )
    for number, seed, shift in ((3, 9, 0), (2, 10, 0), (2, 9, 1)):
        assert not torch.equal(augment(batch, index + shift, number, seed, CFG), whole)


def test_channels_last_is_preserved() -> None:
    batch = images(4).contiguous(memory_format=torch.channels_last)
    assert augment(batch, torch.arange(4), 0, 0, CFG).is_contiguous(memory_format=torch.channels_last)


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


def test_all_shifts_occur_and_mirrors_in_proportion() -> None:
    ramp = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(4000, 1, 8, 8)
    found = augment(ramp, torch.arange(4000), 0, 0, AugmentConfig(pad=2, flip=0.25))
    assert len({tuple(each.flatten().tolist()) for each in found}) == 5 * 5 * 2
    mirrored = (found[:, 0, 4, 3] > found[:, 0, 4, 4]).float().mean().item()
    assert mirrored == pytest.approx(0.25, abs=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_makes_the_same_views() -> None:
    batch, index = images(64), torch.arange(64) * 12345
    assert torch.equal(augment(batch.cuda(), index.cuda(), 3, 4, CFG).cpu(), augment(batch, index, 3, 4, CFG))


@pytest.mark.parametrize("given", [{"pad": -1}, {"flip": 1.1}, {"flip": -0.1}, {"crop": 3}])
def test_wrong_settings_name_the_field(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        AugmentConfig(**given)
