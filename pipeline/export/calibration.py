"""Probabilities that say how often the student is right: one temperature, and what it changes.

The graph's probabilities become the softmax of `logits / temperature` (Guo et al., 2017). The temperature is
the one with the smallest negative log-likelihood on validation images. What it changes is measured on test
images. The likeliest class stays the same. This file imports numpy alone, because reports use it too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.settings import InputError

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # the temperatures that are tried
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

Facts = dict[str, Any]


def confidence(logits: np.ndarray) -> np.ndarray:
    """The largest softmax probability of each row."""
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    largest: np.ndarray = exp.max(1) / exp.sum(1)
    return largest


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., 2017).

    Confidence is the largest softmax probability. Predictions fall by confidence into equally wide bins
    `((b-1)/bins, b/bins]`. The error is the mean over all predictions of their bin's
    `|mean confidence - accuracy|`.
    """
    sure = confidence(logits)
    correct = logits.argmax(1) == labels
    which = np.ceil(sure * bins).astype(np.int64) - 1
    gaps = np.bincount(which, weights=sure - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature with the smallest negative log-likelihood, to 4 decimals.

    None if there is none between COLDEST and HOTTEST: the smaller the better if every answer is right, the
    larger the better if the answers are no better than chance. The likelihood has one peak, so a bounded
    search on the logarithm (Brent's, which falls back on the golden section) finds it.
    """
    if not np.isfinite(logits).all():
        raise InputError(
            "export.calibrate_probabilities: the student gives NaN or infinity on validation images. "
            "Train it again with a smaller learning rate."
        )
    from scipy.optimize import minimize_scalar

    ends = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    found = minimize_scalar(
        lambda x: negative_log_likelihood(logits, labels, float(np.exp(x))),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-7},
    )
    if min(found.x - ends[0], ends[1] - found.x) < 0.01:
        return None
    return round(float(np.exp(found.x)), 4)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The mean over all images, in nats."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    own = np.take_along_axis(scaled, labels[:, None], 1)[:, 0]
    return float((np.log(np.exp(scaled).sum(1)) - own).mean())


def fitted(logits: np.ndarray, labels: np.ndarray) -> Facts:
    """The temperature of validation images, as facts for bundle.json. Without a best one it is 1."""
    best = fit_temperature(logits, labels)
    temperature = 1.0 if best is None else best
    return {
        "temperature": temperature,
        "found": best is not None,
        "images": len(labels),
        "nll_before": negative_log_likelihood(logits, labels, 1.0),
        "nll_after": negative_log_likelihood(logits, labels, temperature),
    }


def measured(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Facts:
    """The calibration error before and after on images that the temperature was not fitted on."""
    scaled = logits / temperature
    return {
        "images": len(labels),
        "bins": BINS,
        "ece_before": calibration_error(logits, labels),
        "ece_after": calibration_error(scaled, labels),
        "thresholds": thresholds(confidence(scaled), scaled.argmax(1) == labels),
    }


def thresholds(sure: np.ndarray, right: np.ndarray, levels: Sequence[float] = THRESHOLDS) -> Facts:
    """What it costs and saves to answer only from a confidence on: by threshold, the share of the images
    that get an answer, and the accuracy of these answers (None: there are none)."""
    found = {}
    for level in levels:
        kept = sure >= level
        accuracy = float(right[kept].mean()) if kept.any() else None
        found[f"{level:g}"] = {"answered": float(kept.mean()), "accuracy": accuracy}
    return found


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a person should know of a calibration."""
    if facts["found"]:
        return []
    return [
        f"no temperature between {COLDEST:g} and {HOTTEST:g} fits the {facts['images']} validation images "
        "best (are all answers right, or none?), so the probabilities stay as they are"
    ]
