"""How good a classifier is, from its logits alone: any function from images to logits can be scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.images import Images
from pipeline.data.seen import images_at_once
from pipeline.export.calibration import calibration_error
from pipeline.records.ticker import counting
from pipeline.settings import InputError

MISTAKES = 50  # pairs of classes that a record holds, at most; evaluate/RUN.npz has what else there is


def logits_of(
    predict: Callable[[np.ndarray], np.ndarray],
    images: Images,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Logits of the given rows, in their order.

    `images` (uint8 N x H x W x C) may be on disk: one batch is read at a time.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if rows.size == 0:
        raise InputError("There are no images to evaluate: the chosen split has no rows.")
    batch_size = batch_size or images_at_once(images.shape[1], most=256)
    answered = []
    with counting("evaluate", shown=progress) as on_answered:
        for start in range(0, len(rows), batch_size):
            answered.append(predict(images[rows[start : start + batch_size]]))
            on_answered(min(start + batch_size, len(rows)), len(rows))
    return np.concatenate(answered)


@dataclass(frozen=True)
class Scores:
    """Accuracies are from 0 to 1. A value that makes no sense for these images or classes is None.

    Classes without an image are left out of the means over classes.
    """

    accuracy: float
    balanced_accuracy: float  # mean recall of the classes
    macro_f1: float  # mean F1 of the classes; one that is never predicted has 0
    top5: float | None  # only with more than 5 classes
    ece: float
    agreement: float | None  # share of the images for which the teacher predicts the same class
    per_class: list[float | None]  # accuracy; None: no image of this class
    images_per_class: list[int]
    mistakes: list[tuple[int, int, int]]  # the most frequent: actual class, predicted class, images
    n: int


def score(
    logits: np.ndarray, labels: np.ndarray, classes: int, teacher_logits: np.ndarray | None = None
) -> Scores:
    """All scores of one network on one set of images. Of equal logits the first class is the prediction."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    check_logits(logits, "logits", len(labels), classes)
    if labels.ndim != 1 or len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels: expected at least one image, and for each a whole number from 0 to {classes - 1}."
        )
    predicted = logits.argmax(1)
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    agreement = None
    if teacher_logits is not None:
        teacher_logits = np.asarray(teacher_logits)
        check_logits(teacher_logits, "teacher logits", len(labels), classes)
        agreement = float((predicted == teacher_logits.argmax(1)).mean())
    import torch  # not above: the report imports this file, and does without torch

    from pipeline.functional import class_means

    return Scores(
        accuracy=float((predicted == labels).mean()),
        **class_means(torch.from_numpy(predicted), torch.from_numpy(labels), classes)._asdict(),
        top5=float((_rank(logits, labels) < 5).mean()) if classes > 5 else None,
        ece=calibration_error(logits, labels),
        agreement=agreement,
        per_class=[float(a / n) if n else None for a, n in zip(right, images, strict=True)],
        images_per_class=images.tolist(),
        mistakes=_mistakes(labels, predicted),
        n=len(labels),
    )


def _mistakes(labels: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int]]:
    """Of pairs that are equally frequent, those of the first classes."""
    wrong = np.stack([labels, predicted], axis=1)[predicted != labels]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:MISTAKES]
    return [(int(a), int(p), int(n)) for (a, p), n in zip(pairs[first], counts[first], strict=True)]


def summarise(scores: Sequence[Scores]) -> dict[str, float]:
    """Means over seeds. `n` is their number, `spread` the sample standard deviation of the accuracy: there is
    none with one seed."""
    accuracy = [s.accuracy for s in scores]
    summary = {"accuracy": float(np.mean(accuracy)), "n": len(accuracy)}
    if len(accuracy) > 1:
        summary["spread"] = float(np.std(accuracy, ddof=1))
    for name in ("balanced_accuracy", "macro_f1", "ece", "agreement", "top5"):
        values = [value for s in scores if (value := getattr(s, name)) is not None]
        if len(values) == len(scores):
            summary[name] = float(np.mean(values))
    return summary


def check_logits(logits: np.ndarray, what: str, n: int, classes: int) -> None:
    """Refuse logits of a wrong shape and logits that are not finite; `what` names them in the error."""
    if logits.shape != (n, classes):
        raise InputError(
            f"{what}: the shape is {logits.shape}, but must be {(n, classes)}: a row for each image and a "
            "column for each class."
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(1).sum())
        raise InputError(
            f"{what}: {bad} of {n} rows hold NaN or infinity, so the training has diverged. Train the "
            "network again with a smaller learning rate."
        )


def _rank(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one."""
    own = np.take_along_axis(logits, labels[:, None], 1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    rank: np.ndarray = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return rank
