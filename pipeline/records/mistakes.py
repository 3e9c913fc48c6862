"""What a network took for what, from its scores in a record of stage `evaluate`.

Older records hold the whole matrix: `confusion`, the images by actual class (rows) and predicted class.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Mistake(NamedTuple):
    """Images of one class that were taken for another one. The classes are numbers."""

    actual: int
    predicted: int
    images: int


def mistakes(scores: Mapping[str, Any]) -> list[Mistake]:
    """The most frequent first. A record holds the first of them only."""
    if "confusion" not in scores:
        return [Mistake(*each) for each in scores["mistakes"]]
    found = [
        Mistake(actual, predicted, images)
        for actual, row in enumerate(scores["confusion"])
        for predicted, images in enumerate(row)
        if images and actual != predicted
    ]
    return sorted(found, key=lambda each: -each.images)


def images_per_class(scores: Mapping[str, Any]) -> list[int]:
    if "confusion" in scores:
        return [sum(row) for row in scores["confusion"]]
    return list(scores["images_per_class"])
