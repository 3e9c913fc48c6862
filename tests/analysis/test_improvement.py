import math

import pytest

from pipeline.analysis.improvement import average_relative_improvement, relative_improvement


def test_relative_improvement_is_that_of_the_paper() -> None:
    """Over AT with VGG-8 and ResNet-32x4, its best case; over HKD with MobileNetV2 and WRN-40-2, where the
    paper has 9.98 %, from numbers that are rounded less."""
    assert relative_improvement(75.27, 71.90, 70.46) == pytest.approx(2.34, abs=0.005)
    assert relative_improvement(69.61, 69.23, 65.43) == pytest.approx(0.10, abs=0.001)


def test_relative_improvement_is_0_for_equal_and_minus_1_for_no_gain() -> None:
    assert relative_improvement(0.7, 0.7, 0.5) == 0
    assert relative_improvement(0.5, 0.7, 0.5) == pytest.approx(-1)
    assert relative_improvement(0.9, 0.7, 0.5) == pytest.approx(1)
    assert math.isnan(relative_improvement(0.9, 0.5, 0.5))


def test_the_average_is_over_settings() -> None:
    settings = [(0.9, 0.7, 0.5), (0.8, 0.7, 0.5), (0.6, 0.7, 0.5)]
    assert average_relative_improvement(settings) == pytest.approx((1 + 0.5 - 0.5) / 3)
    assert math.isnan(average_relative_improvement([*settings, (0.9, 0.5, 0.5)]))
