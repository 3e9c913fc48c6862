import math

import numpy as np
import pytest

from pipeline.data.noise import noisy

GREY = np.full((64, 64, 3), 128, dtype=np.uint8)


@pytest.mark.parametrize("sigma", [2.0, 10.0, 30.0])
def test_the_noise_is_gaussian_with_deviation_sigma(sigma: float) -> None:
    noise = noisy(GREY, sigma, 0, "a").astype(float) - 128
    assert noise.std() == pytest.approx((sigma**2 + 1 / 12) ** 0.5, rel=0.02)  # rounding adds a twelfth
    assert abs(noise.mean()) < 4 * sigma / noise.size**0.5
    within = [(abs(noise) <= limit + 0.5).mean() for limit in (round(sigma), round(2 * sigma))]
    exact = [math.erf((limit + 0.5) / sigma / 2**0.5) for limit in (round(sigma), round(2 * sigma))]
    assert within == pytest.approx(exact, abs=0.02)


def test_the_noise_depends_on_seed_and_key_alone() -> None:
    first = noisy(GREY, 10, 0, "a")
    np.random.default_rng(1).normal(size=5)
    assert np.array_equal(first, noisy(GREY, 10, 0, "a"))
    assert not np.array_equal(first, noisy(GREY, 10, 1, "a"))
    assert not np.array_equal(first, noisy(GREY, 10, 0, "b"))


def test_noisy_pixels_are_clipped() -> None:
    black, white = noisy(GREY * 0, 50, 0, "a"), noisy(GREY * 0 + 255, 50, 0, "a")
    assert black.dtype == white.dtype == np.uint8
    assert 0.4 < (black == 0).mean() < 0.6  # half of the noise is cut off, none wraps around
    assert 0.4 < (white == 255).mean() < 0.6
    assert black.max() < 255
    assert white.min() > 0
