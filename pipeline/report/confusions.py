"""Which classes the exported student confuses."""

from typing import NamedTuple

from pipeline.records.results import RunResults


class Pair(NamedTuple):
    actual: str
    predicted: str
    images: int
    share: float  # of the images of the actual class


def class_pairs(run: RunResults) -> list[Pair]:
    """Every pair of classes, also pairs that never occur and each class with itself."""
    names, found = run.records["evaluate"].details["classes"], []
    for actual, counts in zip(names, run.confusion, strict=True):
        for predicted, count in zip(names, counts, strict=True):
            found.append(Pair(actual, predicted, count, count / max(1, sum(counts))))
    return found


def frequent_errors(run: RunResults, most: int) -> list[Pair]:
    """The errors that occur, the most frequent first."""
    errors = [pair for pair in class_pairs(run) if pair.images and pair.actual != pair.predicted]
    return sorted(errors, key=lambda pair: -pair.images)[:most]
