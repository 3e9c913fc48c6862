"""Which classes the exported student takes for which others."""

from typing import NamedTuple

from pipeline.report.results import Run


class Pair(NamedTuple):
    actual: str
    predicted: str
    images: int
    share: float  # of the images of the actual class


def pairs(run: Run) -> list[Pair]:
    """Every pair of classes, also those that never occur and a class with itself."""
    tested, found = run.records["evaluate"].details, []
    for actual, counts in zip(tested["classes"], run.confusion, strict=True):
        for predicted, count in zip(tested["classes"], counts, strict=True):
            found.append(Pair(actual, predicted, count, count / max(1, sum(counts))))
    return found


def frequent(run: Run, most: int) -> list[Pair]:
    """The errors that occur, the most frequent first."""
    errors = [pair for pair in pairs(run) if pair.images and pair.actual != pair.predicted]
    return sorted(errors, key=lambda pair: -pair.images)[:most]
