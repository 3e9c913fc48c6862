"""Gains on the same test images, against a calculation image by image."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.image_gains import are_comparable, of_files, of_methods
from pipeline.evaluation.predictions import AllPredictions, Predictions
from pipeline.records.intervals import of_difference

# which of ten images each seed has right
OURS = {0: "1111101101", 3: "1110111111"}
THEIRS = {0: "1010101000", 1: "0110101010", 2: "1111100000"}


def predictions(right: dict[int, str]) -> AllPredictions:
    labels = np.arange(10) % 3
    certain = np.ones(10, np.float32)
    students = {
        seed: Predictions(np.where(np.array(list(marks)) == "1", labels, 9).astype(np.int32), certain)
        for seed, marks in right.items()
    }
    return AllPredictions(np.arange(10), labels, Predictions(labels, certain), students)


def test_the_gain_of_a_method_is_the_mean_over_images_of_the_difference_of_shares() -> None:
    differences = [
        sum(int(marks[i]) for marks in OURS.values()) / len(OURS)
        - sum(int(marks[i]) for marks in THEIRS.values()) / len(THEIRS)
        for i in range(10)
    ]
    mean = sum(differences) / 10
    half = 1.96 * statistics.stdev(differences) / math.sqrt(10)
    found = of_methods(predictions(OURS), predictions(THEIRS))
    assert found == pytest.approx((mean, mean - half, mean + half), abs=1e-6)
    assert of_methods(predictions(THEIRS), predictions(OURS)).mean == pytest.approx(-mean)


def test_the_gain_of_a_file_counts_the_images_that_one_of_both_has_right() -> None:
    ours, theirs = predictions(OURS), predictions(THEIRS)
    pairs = list(zip(OURS[3], THEIRS[1], strict=True))
    better, worse = pairs.count(("1", "0")), pairs.count(("0", "1"))
    found = of_files(ours, 3, theirs, 1)
    assert found.mean == pytest.approx((better - worse) / 10)
    assert (found.low, found.high) == of_difference(better, worse, 10)
    assert found.low < found.mean < found.high
    assert of_files(theirs, 1, ours, 3) == pytest.approx((-found.mean, -found.high, -found.low))
    assert of_files(ours, 0, ours, 0).mean == 0


def test_only_answers_to_the_same_images_are_compared() -> None:
    ours = predictions(OURS)
    assert are_comparable(ours, predictions(THEIRS))
    assert not are_comparable(ours, replace(ours, rows=ours.rows + 1))
    assert not are_comparable(ours, replace(ours, rows=ours.rows[:9]))
