from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.predictions import (
    AllPredictions,
    Bin,
    Predictions,
    load_predictions,
    missed,
    outcomes,
    reliability,
    save_predictions,
)
from pipeline.export.calibration import BINS, calibration_error
from pipeline.settings import InputError


@pytest.fixture
def predictions() -> AllPredictions:
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(50, 4)).astype(np.float32) for _ in range(3)]
    teacher, first, second = (Predictions.of(each) for each in logits)
    return AllPredictions(np.arange(100, 150), rng.integers(0, 4, 50), teacher, {0: first, 7: second})


def test_the_confidence_is_the_probability_of_the_predicted_class() -> None:
    predictions = Predictions.of(np.log(np.array([[1.0, 3.0], [0.8, 0.2]])))
    assert predictions.label.tolist() == [1, 0]
    assert predictions.confidence == pytest.approx([0.75, 0.8])


def test_what_is_saved_is_loaded(predictions: AllPredictions, tmp_path: Path) -> None:
    file = tmp_path / "evaluate" / "kd.npz"
    save_predictions(file, predictions)
    loaded = load_predictions(file)
    assert loaded is not None
    assert np.array_equal(loaded.rows, predictions.rows)
    assert np.array_equal(loaded.labels, predictions.labels)
    assert np.array_equal(loaded.teacher.confidence, predictions.teacher.confidence)
    assert list(loaded.students) == [0, 7]
    assert np.array_equal(loaded.students[7].label, predictions.students[7].label)
    first = file.read_bytes()
    save_predictions(file, predictions)
    assert file.read_bytes() == first  # otherwise DVC would see another output each time
    assert [path.name for path in file.parent.iterdir()] == ["kd.npz"]


def test_a_missing_file_is_none_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert load_predictions(tmp_path / "kd.npz") is None
    (tmp_path / "kd.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match=r"kd.npz holds no usable predictions.*evaluate@kd"):
        load_predictions(tmp_path / "kd.npz")


def test_bins_are_those_of_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    logits, labels = 3 * rng.normal(size=(400, 5)), rng.integers(0, 5, 400)
    bins = reliability(Predictions.of(logits), labels, BINS)
    assert sum(b.n for b in bins) == 400
    error = sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / 400
    assert error == pytest.approx(calibration_error(logits, labels), abs=1e-6)


def test_bins_computed_by_hand() -> None:
    predictions = Predictions(np.array([0, 1, 1, 0]), np.array([0.5, 0.3, 0.4, 1.0], np.float32))
    first, second = reliability(predictions, np.array([0, 1, 0, 1]), 2)
    assert first.n == 3  # 0.5 belongs to the lower bin
    assert (first.confidence, first.accuracy) == pytest.approx((0.4, 2 / 3))
    assert second == Bin(1, 1.0, 0.0)
    assert [b.n for b in reliability(predictions, np.zeros(4, int), 5)] == [0, 1, 2, 0, 1]


def test_outcomes_and_the_images_that_only_the_student_gets_wrong() -> None:
    labels = np.zeros(6, dtype=int)
    student = Predictions(np.array([0, 1, 1, 0, 1, 1]), np.array([0.9, 0.6, 0.8, 0.9, 0.7, 0.99], np.float32))
    teacher = Predictions(np.array([0, 0, 0, 1, 1, 0]), np.full(6, 0.9, np.float32))
    predictions = AllPredictions(np.arange(6), labels, teacher, {3: student})
    assert outcomes(predictions, 3) == {
        "both right": 1,
        "only the teacher right": 3,
        "only the student right": 1,
        "both wrong": 1,
    }
    assert missed(predictions, 3).tolist() == [5, 2, 1]
