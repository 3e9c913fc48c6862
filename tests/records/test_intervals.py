import numpy as np
import pytest

from pipeline.records.intervals import of_difference, of_scores, of_share


def test_an_accuracy_has_wilsons_interval() -> None:
    assert of_share(81, 100) == pytest.approx((0.81, 0.7222, 0.8749, 100), abs=1e-4)
    for right in (0, 20):  # where the usual interval would have no width
        share = of_share(right, 20)
        assert share.high - share.low > 0.1
        assert 0 <= share.low <= share.value <= share.high <= 1


def test_the_interval_holds_the_true_accuracy_often_enough() -> None:
    rng = np.random.default_rng(0)
    for images, accuracy in ((359, 0.93), (100, 0.5), (50, 0.98)):
        shares = [of_share(int(right), images) for right in rng.binomial(images, accuracy, 2000)]
        assert sum(each.low <= accuracy <= each.high for each in shares) / 2000 > 0.92


def test_scores_count_the_images_of_the_confusion_matrix() -> None:
    scores = {"accuracy": 0.75, "confusion": [[5, 1], [2, 4]]}
    assert of_scores(scores) == of_share(9, 12)


def test_a_difference_is_that_of_a_minus_b() -> None:
    low, high = of_difference(11, 0, 100)
    assert 0 < low < 0.11 < high
    assert of_difference(0, 11, 100) == pytest.approx((-high, -low))
