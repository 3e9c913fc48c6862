"""What one run gains over another on the same test images, with the interval for other images of their kind.

The interval over seeds (gains.py) answers another question: what other seeds would give on these images.
"""

from typing import NamedTuple

import numpy as np

from pipeline.evaluation.predictions import AllPredictions
from pipeline.records.intervals import SIGMAS, of_difference


class ImageGain(NamedTuple):
    """A difference of accuracies, and its 95 % interval."""

    mean: float
    low: float
    high: float


def of_methods(ours: AllPredictions, theirs: AllPredictions) -> ImageGain:
    """Of the means over seeds: for each image, the shares of the seeds that are right."""
    difference = _shares(ours) - _shares(theirs)
    mean = float(difference.mean())
    half = SIGMAS * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return ImageGain(mean, mean - half, mean + half)


def of_files(ours: AllPredictions, our_seed: int, theirs: AllPredictions, their_seed: int) -> ImageGain:
    """Of the two students that are exported."""
    us, them = _right(ours, our_seed), _right(theirs, their_seed)
    low, high = of_difference(int((us & ~them).sum()), int((them & ~us).sum()), len(us))
    return ImageGain(float(us.mean() - them.mean()), low, high)


def are_comparable(ours: AllPredictions, theirs: AllPredictions) -> bool:
    """Whether both were tested on the same images."""
    return np.array_equal(ours.rows, theirs.rows)


def _shares(of: AllPredictions) -> np.ndarray:
    shares: np.ndarray = np.stack([_right(of, seed) for seed in of.students]).astype(np.float64).mean(0)
    return shares


def _right(of: AllPredictions, seed: int) -> np.ndarray:
    right: np.ndarray = of.students[seed].label == of.labels
    return right
