from pathlib import Path

import numpy as np
import pytest

from pipeline import predictions
from pipeline.evaluate import BINS, calibration_error
from pipeline.inputs import InputError
from pipeline.predictions import Bin, Predictions, Said


@pytest.fixture
def said() -> Predictions:
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(50, 4)).astype(np.float32) for _ in range(3)]
    teacher, first, second = (Said.of(each) for each in logits)
    return Predictions(np.arange(100, 150), rng.integers(0, 4, 50), teacher, {0: first, 7: second})


def test_a_confidence_is_the_probability_of_the_chosen_class() -> None:
    said = Said.of(np.log(np.array([[1.0, 3.0], [0.8, 0.2]])))
    assert said.label.tolist() == [1, 0]
    assert said.confidence == pytest.approx([0.75, 0.8])


def test_what_is_saved_is_loaded(said: Predictions, tmp_path: Path) -> None:
    file = tmp_path / "evaluate" / "kd.npz"
    predictions.save(file, said)
    loaded = predictions.load(file)
    assert loaded is not None
    assert np.array_equal(loaded.rows, said.rows)
    assert np.array_equal(loaded.labels, said.labels)
    assert np.array_equal(loaded.teacher.confidence, said.teacher.confidence)
    assert list(loaded.students) == [0, 7]
    assert np.array_equal(loaded.students[7].label, said.students[7].label)
    first = file.read_bytes()
    predictions.save(file, said)
    assert file.read_bytes() == first  # or DVC would see another output each time
    assert [path.name for path in file.parent.iterdir()] == ["kd.npz"]


def test_nothing_kept_is_none_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert predictions.load(tmp_path / "kd.npz") is None
    (tmp_path / "kd.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match=r"kd.npz: no usable predictions.*evaluate@kd"):
        predictions.load(tmp_path / "kd.npz")


def test_bins_are_those_of_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    logits, labels = 3 * rng.normal(size=(400, 5)), rng.integers(0, 5, 400)
    bins = predictions.reliability(Said.of(logits), labels, BINS)
    assert sum(b.n for b in bins) == 400
    error = sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / 400
    assert error == pytest.approx(calibration_error(logits, labels), abs=1e-6)


def test_a_bin_by_hand() -> None:
    said = Said(np.array([0, 1, 1, 0]), np.array([0.5, 0.3, 0.4, 1.0], np.float32))
    first, second = predictions.reliability(said, np.array([0, 1, 0, 1]), 2)
    assert first.n == 3  # 0.5 belongs to the lower bin
    assert (first.confidence, first.accuracy) == pytest.approx((0.4, 2 / 3))
    assert second == Bin(1, 1.0, 0.0)
    assert [b.n for b in predictions.reliability(said, np.zeros(4, int), 5)] == [0, 1, 2, 0, 1]


def test_outcomes_and_what_the_student_missed() -> None:
    right = np.zeros(6, dtype=int)
    student = Said(np.array([0, 1, 1, 0, 1, 1]), np.array([0.9, 0.6, 0.8, 0.9, 0.7, 0.99], np.float32))
    teacher = Said(np.array([0, 0, 0, 1, 1, 0]), np.full(6, 0.9, np.float32))
    said = Predictions(np.arange(6), right, teacher, {3: student})
    assert predictions.outcomes(said, 3) == {
        "both right": 1,
        "only the teacher right": 3,
        "only the student right": 1,
        "both wrong": 1,
    }
    assert predictions.missed(said, 3).tolist() == [5, 2, 1]
