import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.gains import gain
from pipeline.settings import InputError


def test_the_paired_interval_is_that_of_scipy() -> None:
    run, baseline = {0: 0.71, 1: 0.75, 2: 0.70}, {2: 0.66, 0: 0.68, 1: 0.69}
    got = gain(run, baseline)
    want = stats.ttest_rel([run[s] for s in range(3)], [baseline[s] for s in range(3)]).confidence_interval(
        0.95
    )
    assert (got.mean, got.low, got.high) == pytest.approx((np.mean([0.03, 0.06, 0.04]), want.low, want.high))
    assert (got.n, got.paired) == (3, True)


def test_the_unpaired_interval_is_welchs() -> None:
    run, baseline = {0: 0.71, 1: 0.75, 2: 0.70, 9: 0.9}, {2: 0.66, 5: 0.68, 6: 0.69}
    got = gain(run, baseline)
    want = stats.ttest_ind(list(run.values()), list(baseline.values()), equal_var=False).confidence_interval(
        0.95
    )
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert (got.n, got.paired) == (3, False)


def test_seeds_are_paired_if_one_side_has_more() -> None:
    assert gain({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5, 2: 0.0}) == gain({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5})


def test_one_seed_has_no_interval() -> None:
    got = gain({0: 0.5}, {0: 0.4, 1: 0.3})
    assert got.mean == pytest.approx(0.1)
    assert (got.low, got.high, got.n, got.paired) == (None, None, 1, True)
    assert gain({5: 0.5}, {0: 0.4, 1: 0.3}).low is None


def test_without_variance_the_interval_is_a_point() -> None:
    got = gain({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25})
    assert (got.mean, got.low, got.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_holds_the_true_gain_in_95_percent(paired: bool) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        start = rng.normal(size=3)
        run = dict(enumerate(2 + rng.normal(size=3) + (start if paired else 0)))
        baseline = {
            seed + (0 if paired else 10): value
            for seed, value in enumerate(rng.normal(size=3) + (start if paired else 0))
        }
        got = gain(run, baseline)
        assert got.low is not None
        assert got.high is not None
        hits += got.low <= 2 <= got.high
    assert 930 <= hits <= 985  # Welch's is a little too wide with 3 against 3


def test_a_side_without_seeds_is_refused() -> None:
    with pytest.raises(InputError, match="at least one seed"):
        gain({}, {0: 0.1})
