"""95 % intervals of what was counted on the same images: other images would give other counts."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.records.mistakes import images_per_class

SIGMAS = 1.96


class Share(NamedTuple):
    """The share of the images that an accuracy counts, with its interval."""

    value: float
    low: float
    high: float
    images: int


def of_share(right: int, images: int) -> Share:
    """An accuracy (Wilson, 1927): the interval also holds where all or none are right."""
    value, z2 = right / images, SIGMAS**2
    middle = (right + z2 / 2) / (images + z2)
    half = SIGMAS * math.sqrt(right * (1 - value) + z2 / 4) / (images + z2)
    return Share(value, max(0.0, middle - half), min(1.0, middle + half), images)


def of_scores(scores: Mapping[str, Any]) -> Share:
    """The accuracy of one network, from its scores in a record of stage `evaluate`."""
    images = sum(images_per_class(scores))
    return of_share(round(images * scores["accuracy"]), images)


def of_difference(only_a: int, only_b: int, images: int) -> tuple[float, float]:
    """The accuracy of a minus that of b, from the images that only one of them gets right (Agresti & Min,
    2005). It also holds if the two differ on few images or on none.
    """
    a, b, n = only_a + 0.5, only_b + 0.5, images + 2
    mean = (a - b) / n
    half = SIGMAS * math.sqrt(a + b - (a - b) ** 2 / n) / n
    return max(mean - half, -1.0), min(mean + half, 1.0)
