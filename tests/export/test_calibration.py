import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.export import calibration
from pipeline.export.calibration import (
    calibration_error,
    confidence,
    fit_temperature,
    fitted,
    measured,
    thresholds,
)
from pipeline.settings import InputError


def drawn(
    temperature: float, n: int = 4000, classes: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels with the probabilities softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(n, classes))).astype(np.float32)
    exp = np.exp(logits.astype(np.float64) / temperature)
    sums = (exp / exp.sum(1, keepdims=True)).cumsum(1)
    return logits, (rng.random((n, 1)) > sums).sum(1).clip(max=classes - 1)


def test_calibrated_predictions_have_no_error() -> None:
    # three predictions of four are right, each with a confidence of 3/4
    labels = np.array([0, 0, 0, 1])
    logits = np.log(np.tile([[0.75, 0.25]], (4, 1)))
    assert calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)


def test_confidence_is_the_largest_probability() -> None:
    assert confidence(np.log([[0.2, 0.7, 0.1], [0.5, 0.5, 1e-9]])) == pytest.approx([0.7, 0.5])
    assert confidence(np.array([[-1e6, -2e6]], dtype=np.float32)).tolist() == [1.0]


@pytest.mark.parametrize("true", [0.3, 0.8, 1.0, 1.7, 6.0])
def test_the_temperature_of_the_labels_is_found(true: float) -> None:
    logits, labels = drawn(true)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.12)
    # as by another road: torch's cross entropy on a fine grid around it
    grid = found * np.exp(np.linspace(-0.02, 0.02, 4001))
    losses = [
        float(F.cross_entropy(torch.tensor(logits).double() / t, torch.tensor(labels))) for t in grid[::40]
    ]
    assert grid[::40][int(np.argmin(losses))] == pytest.approx(found, rel=5e-4)


@pytest.mark.parametrize("factor", [0.25, 3.0, 7.0])
def test_larger_logits_have_a_larger_temperature(factor: float) -> None:
    logits, labels = drawn(1.2)
    found = fit_temperature(logits, labels)
    assert found is not None
    assert fit_temperature(logits * np.float32(factor), labels) == pytest.approx(factor * found, rel=1e-3)
    assert fit_temperature(logits + np.float32(50), labels) == pytest.approx(found, abs=2e-4)


def test_no_temperature_is_best_if_all_answers_are_right_or_worse_than_chance() -> None:
    logits, _ = drawn(1.0, n=300)
    for labels, n in ((logits.argmax(1), 300), (logits.argmin(1), 300)):
        assert fit_temperature(logits, labels) is None
        facts = fitted(logits, labels)
        assert (facts["temperature"], facts["found"], facts["images"]) == (1.0, False, n)
        assert facts["nll_before"] == facts["nll_after"]
        (remark,) = calibration.remarks(facts)
        assert "fits the 300 validation images best" in remark
    assert calibration.remarks(fitted(*drawn(2.0))) == []


def test_logits_that_are_not_finite_are_refused() -> None:
    logits, labels = drawn(1.0, n=10)
    logits[3, 2] = np.nan
    with pytest.raises(InputError, match=r"export\.calibrate_probabilities.*NaN or infinity"):
        fit_temperature(logits, labels)


def test_the_likelihood_is_that_of_torch() -> None:
    logits, labels = drawn(1.0, n=50)
    for temperature in (0.05, 1.0, 20.0):
        want = float(F.cross_entropy(torch.tensor(logits).double() / temperature, torch.tensor(labels)))
        assert calibration.negative_log_likelihood(logits, labels, temperature) == pytest.approx(
            want, rel=1e-9
        )


def test_what_a_temperature_changes_is_measured_on_other_images() -> None:
    facts = fitted(*drawn(2.5))
    assert facts["nll_after"] < facts["nll_before"]
    logits, labels = drawn(2.5, seed=1)
    found = measured(logits, labels, facts["temperature"])
    assert found["ece_before"] == calibration_error(logits, labels) > 0.2
    assert found["ece_after"] == pytest.approx(
        calibration_error(logits.astype(np.float64) / facts["temperature"], labels), abs=1e-6
    )
    assert found["ece_after"] < 0.03
    assert (found["images"], found["bins"]) == (4000, 15)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_thresholds_equal_the_slow_loop() -> None:
    logits, labels = drawn(1.5, n=500)
    sure, right = confidence(logits), logits.argmax(1) == labels
    found = thresholds(sure, right)
    assert list(found) == ["0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "0.99"]
    for level, facts in found.items():
        kept = [hit for p, hit in zip(sure.tolist(), right.tolist(), strict=True) if p >= float(level)]
        assert facts["answered"] == len(kept) / 500
        assert facts["accuracy"] == pytest.approx(sum(kept) / len(kept))
    assert found["0.9"]["accuracy"] > found["0.5"]["accuracy"]


def test_without_answers_there_is_no_accuracy() -> None:
    assert thresholds(np.array([0.4, 0.8]), np.array([True, True]), [0.8, 0.9]) == {
        "0.8": {"answered": 0.5, "accuracy": 1.0},
        "0.9": {"answered": 0.0, "accuracy": None},
    }
