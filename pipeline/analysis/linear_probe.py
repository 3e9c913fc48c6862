"""Linear probing: how well a linear classifier on a frozen network's embedding does a task.

It measures a pretrained student before its last phase (SRM, table 2), and how well a finished student's
embedding serves for other images. The classifier is multinomial logistic regression on embeddings that are
standardised by the training rows. The strength of its regularisation is chosen on validation, and the test
rows are read once, with that choice. Nothing in it is random.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.data.seen import Seen, images_at_once
from pipeline.functional import normalise
from pipeline.settings import InputError
from pipeline.taps import Tapped, in_eval_mode

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = tuple(10.0**n for n in range(-4, 3))  # scikit-learn's C, from strong regularisation to weak
ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeScores:
    """Accuracies are from 0 to 1."""

    accuracy: float  # on test
    val_accuracy: float
    per_class: dict[int, float]  # on test, by label
    strength: float  # inverse regularisation that is best on validation
    n: int  # test rows


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
) -> ProbeScores:
    """`x` are embeddings, rows x features, and `y` a whole number for each row.

    If several strengths are equally good on validation, the strongest regularisation is chosen.
    """
    for name, x, y in (("train", train_x, train_y), ("val", val_x, val_y), ("test", test_x, test_y)):
        _check(name, x, y, width=train_x.shape[-1])
    if len(np.unique(train_y)) < 2:
        raise InputError("train: a linear probe needs rows of at least two classes.")
    mean, spread = train_x.mean(0, dtype=np.float64), train_x.std(0, dtype=np.float64)
    train, val, test = ((x - mean) / np.where(spread > 0, spread, 1.0) for x in (train_x, val_x, test_x))
    best, best_accuracy = None, -1.0
    for strength in STRENGTHS:
        classifier = _fit(strength, train, train_y)
        accuracy = float((classifier.predict(val) == val_y).mean())
        if accuracy > best_accuracy:
            best, best_accuracy = classifier, accuracy
    assert best is not None
    right = best.predict(test) == test_y
    per_class = {int(label): float(right[test_y == label].mean()) for label in np.unique(test_y)}
    return ProbeScores(float(right.mean()), best_accuracy, per_class, best.C, len(test_y))


def embeddings(
    net: Tapped,
    images: np.ndarray,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
    """What the network's classifier reads, rows x features, in eval mode.

    `images` (uint8 N x H x W x C) may be mapped from disk.
    """
    device, seen = next(net.net.parameters()).device, Seen(images, net.input.size)
    rows = np.asarray(rows, dtype=np.int64)
    if not len(rows):
        raise InputError("There are no images to embed: the chosen split has no rows.")
    found, batch_size = [], batch_size or images_at_once(net.input.size, most=256)
    with in_eval_mode(net.net):
        for start in range(0, len(rows), batch_size):
            pixels = torch.as_tensor(seen[rows[start : start + batch_size]], device=device)
            found.append(net(normalise(pixels, net.input.mean, net.input.std)).pooled.cpu().numpy())
    return np.concatenate(found)


def _fit(strength: float, x: np.ndarray, y: np.ndarray) -> "LogisticRegression":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # separable classes with little regularisation do not converge: the classifier is used as it is then
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=ITERATIONS).fit(x, y)


def _check(name: str, x: np.ndarray, y: np.ndarray, *, width: int) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y) or x.shape[1] != width:
        raise InputError(
            f"{name}: the embeddings have shape {x.shape} and the labels {y.shape}, but must have (n, "
            f"{width}) and (n,) with at least one row."
        )
    if not np.isfinite(x).all():
        raise InputError(
            f"{name}: some embeddings are NaN or infinite, so the training has diverged. Train the network "
            "again with a smaller learning rate."
        )
