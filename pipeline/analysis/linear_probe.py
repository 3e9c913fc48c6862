"""Linear probing: how well a linear classifier on a frozen network's embedding does a task.

It measures a pretrained student before its last phase (SRM, table 2), and how well a finished student's
embedding serves for other images. The classifier is multinomial logistic regression on embeddings that are
standardised by the training rows. The strength of its regularisation is never chosen on rows that it is
scored on. `layer_probe` is that of the paper instead: a linear layer after 60 epochs. Our reading: Adam with
batches of 64, the rate of its appendix, and embeddings of whole images. Nothing here differs from call to
call.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.data.images import Images
from pipeline.data.seen import Seen, images_at_once
from pipeline.functional import normalise
from pipeline.settings import InputError
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.tapped import Tapped

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Rows = tuple[np.ndarray, np.ndarray]  # embeddings and their labels
STRENGTHS = tuple(10.0**n for n in range(-4, 3))  # scikit-learn's C, from strong regularisation to weak
ITERATIONS = 1000
EPOCHS, DROP = 60, 31  # of a linear layer; after so many the rate falls to a tenth
LR, WEIGHT_DECAY, BATCH = 1e-3, 1e-4, 64


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
    val_right, test_right = _right((train_x, train_y), val=(val_x, val_y), test=(test_x, test_y))
    best = _best(val_right)
    right = test_right[best]
    per_class = {int(label): float(right[test_y == label].mean()) for label in np.unique(test_y)}
    val_accuracy = float(val_right[best].mean())
    return ProbeScores(float(right.mean()), val_accuracy, per_class, STRENGTHS[best], len(test_y))


def cross_probe(train_x: np.ndarray, train_y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray) -> float:
    """The accuracy on `val`: each half of its rows with the strength that is best on the other half."""
    (right,) = _right((train_x, train_y), val=(val_x, val_y))
    if len(val_y) < 2:
        raise InputError("val: a linear probe needs two rows or more. Raise data.val.")
    first = np.zeros(len(val_y), dtype=bool)
    first[np.argsort(val_y, kind="stable")[::2]] = True  # so that both halves have all classes
    halves = (first, ~first), (~first, first)
    return float(sum(right[_best(right[:, other])][half].sum() for half, other in halves) / len(val_y))


def layer_probe(train_x: np.ndarray, train_y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray) -> float:
    """The accuracy on `val` of a linear layer after 60 epochs on `train`."""
    for name, x, y in (("train", train_x, train_y), ("val", val_x, val_y)):
        _check(name, x, y, width=train_x.shape[-1])
    rows, labels = torch.as_tensor(train_x).float(), torch.as_tensor(train_y)
    classes = int(max(train_y.max(), val_y.max())) + 1
    # the loss has one minimum, so the start only has to be the same in every call
    weight = torch.zeros(classes, rows.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [DROP])
    order = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(rows), generator=order), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(F.linear(rows[batch], weight, bias), labels[batch]))
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        answers = F.linear(torch.as_tensor(val_x).float(), weight, bias).argmax(1)
    return float((answers.numpy() == val_y).mean())


def embeddings(
    net: Tapped,
    images: Images,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
    """What the network's classifier reads, rows x features, in eval mode.

    `images` (uint8 N x H x W x C) may be on disk.
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


def _right(train: Rows, **others: Rows) -> list[np.ndarray]:
    """Of each of the others: which rows are predicted right, strengths x rows."""
    for name, (x, y) in {"train": train, **others}.items():
        _check(name, x, y, width=train[0].shape[-1])
    if len(np.unique(train[1])) < 2:
        raise InputError("train: a linear probe needs rows of at least two classes.")
    mean, spread = train[0].mean(0, dtype=np.float64), train[0].std(0, dtype=np.float64)

    def standardised(x: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = (x - mean) / np.where(spread > 0, spread, 1.0)
        return scaled

    classifiers = [_fit(strength, standardised(train[0]), train[1]) for strength in STRENGTHS]
    return [
        np.stack([classifier.predict(standardised(x)) == y for classifier in classifiers])
        for x, y in others.values()
    ]


def _best(right: np.ndarray) -> int:
    """Of equally good strengths, the strongest regularisation."""
    return int(right.mean(1).argmax())


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
