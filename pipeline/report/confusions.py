"""Which classes the exported student confuses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.predictions import AllPredictions
from pipeline.records.mistakes import images_per_class, mistakes
from pipeline.records.record import target, write_again
from pipeline.records.results import RunResults
from pipeline.settings import InputError


class Pair(NamedTuple):
    actual: str
    predicted: str
    images: int
    share: float  # of the images of the actual class


class Confusion(NamedTuple):
    """Of some classes: rows are actual, columns predicted classes."""

    names: list[str]
    images: np.ndarray
    shares: np.ndarray  # of all images of the actual class


def frequent_errors(run: RunResults, most: int) -> list[Pair]:
    """The errors that occur, the most frequent first."""
    names, images = _names(run), images_per_class(run.file_scores)
    return [
        Pair(names[each.actual], names[each.predicted], each.images, each.images / images[each.actual])
        for each in mistakes(run.file_scores)[:most]
    ]


def confusion(run: RunResults, predictions: AllPredictions | None, most: int) -> Confusion:
    """Of the classes in most mistakes, `most` of them, in their own order."""
    actual, predicted, images = _occurring(run, predictions)
    names = _names(run)
    wrong = (actual != predicted) * images
    in_mistakes = np.bincount(actual, wrong, len(names)) + np.bincount(predicted, wrong, len(names))
    shown = np.sort(np.argsort(-in_mistakes, kind="stable")[:most])
    place = np.full(len(names), -1)
    place[shown] = np.arange(len(shown))
    inside = (place[actual] >= 0) & (place[predicted] >= 0)
    counts = np.zeros((len(shown), len(shown)), dtype=np.int64)
    counts[place[actual[inside]], place[predicted[inside]]] = images[inside]
    all_images = np.bincount(actual, images, len(names))[shown]
    return Confusion([names[n] for n in shown], counts, counts / np.maximum(1, all_images)[:, None])


def pairs(confusion: Confusion) -> list[Pair]:
    """Every pair of its classes, also pairs that never occur and each class with itself."""
    names, images, shares = confusion
    return [
        Pair(actual, predicted, int(images[i, j]), float(shares[i, j]))
        for i, actual in enumerate(names)
        for j, predicted in enumerate(names)
    ]


def _occurring(
    run: RunResults, predictions: AllPredictions | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actual class, predicted class and number of images of the pairs that occur."""
    if "confusion" in run.file_scores:  # of an older record
        counts = np.array(run.file_scores["confusion"])
        actual, predicted = np.nonzero(counts)
        return actual, predicted, counts[actual, predicted]
    if predictions is None:
        stage = target("evaluate", run.name)
        raise InputError(f"The predictions of {run.name} are not there. {write_again(stage)}")
    answered = np.stack([predictions.labels, predictions.students[run.exported_seed].label])
    (actual, predicted), counts = np.unique(answered, axis=1, return_counts=True)
    return actual, predicted, counts


def _names(run: RunResults) -> Sequence[str]:
    names: Sequence[str] = run.records["evaluate"].details["classes"]
    return names
