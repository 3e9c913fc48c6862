"""How good a classifier is, from its logits alone: any callable that turns images into logits can be scored."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.inputs import InputError

BINS = 15


def logits_of(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> np.ndarray:
    """Logits of the chosen rows, in their order; `images` (uint8 N x H x W x C) may be mapped from disk, one batch is read at a time."""
    rows = np.asarray(rows, dtype=np.int64)
    if rows.size == 0:
        raise InputError("There are no images to evaluate: the chosen split has no rows.")
    from tqdm import tqdm

    starts = tqdm(range(0, len(rows), batch_size), desc="evaluate", unit="batch", disable=None if progress else True, leave=False)
    return np.concatenate([predict(images[rows[start : start + batch_size]]) for start in starts])


@dataclass(frozen=True)
class Scores:
    """Fractions are of 1; what has no meaning here is None."""

    accuracy: float
    top5: float | None  # only where there are more than 5 classes
    ece: float
    agreement: float | None  # with the teacher's top-1
    per_class: list[float | None]  # None: no image of that class
    confusion: list[list[int]]  # rows: actual, columns: predicted
    n: int


def score(logits: np.ndarray, labels: np.ndarray, classes: int, teacher_logits: np.ndarray | None = None) -> Scores:
    """All measures of one network on one set of images. Among equal logits the first class is the prediction."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    _refuse(logits, "logits", len(labels), classes)
    if labels.ndim != 1 or len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels: expected one whole number from 0 to {classes - 1} an image and at least one image.")
    predicted = logits.argmax(1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    agreement = None
    if teacher_logits is not None:
        teacher_logits = np.asarray(teacher_logits)
        _refuse(teacher_logits, "teacher logits", len(labels), classes)
        agreement = float((predicted == teacher_logits.argmax(1)).mean())
    return Scores(
        accuracy=float((predicted == labels).mean()),
        top5=float((_rank(logits, labels) < 5).mean()) if classes > 5 else None,
        ece=calibration_error(logits, labels),
        agreement=agreement,
        per_class=[float(row[i] / row.sum()) if row.sum() else None for i, row in enumerate(confusion)],
        confusion=confusion.tolist(),
        n=len(labels),
    )


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., 2017).

    Confidence is the largest softmax probability. Predictions fall into equally wide bins `((b-1)/bins, b/bins]`; the error is the
    mean over all predictions of their bin's `|mean confidence - accuracy|`.
    """
    sure = confidence(logits)
    correct = logits.argmax(1) == labels
    which = np.ceil(sure * bins).astype(np.int64) - 1
    gaps = np.bincount(which, weights=sure - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def confidence(logits: np.ndarray) -> np.ndarray:
    """The largest softmax probability of each row. Of a teacher's centre scores over tau2 it is REFILLED's lambda_i at lambda 1."""
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exp.max(1) / exp.sum(1)


def summarise(scores: Sequence[Scores]) -> dict[str, float]:
    """Means over seeds; `spread` is the sample standard deviation of accuracy (0 with one seed), `n` the number of seeds."""
    accuracy = [s.accuracy for s in scores]
    summary = {
        "accuracy": float(np.mean(accuracy)),
        "spread": float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else 0.0,
        "n": len(accuracy),
        "ece": float(np.mean([s.ece for s in scores])),
    }
    for name in ("agreement", "top5"):
        values = [value for s in scores if (value := getattr(s, name)) is not None]
        if len(values) == len(scores):
            summary[name] = float(np.mean(values))
    return summary


@dataclass(frozen=True)
class CrossTask:
    """A student whose teacher learned other classes (REFILLED): accuracies among the classes of both, all of 1.

    `old` of images of the teacher's classes, `new` of images of the student's; a class of both counts in both. `joint` is their mean: the
    accuracy where as many images are taken from the one as from the other.
    """

    old: float
    new: float
    joint: float
    harmonic_mean: float


def cross_task(logits: np.ndarray, labels: np.ndarray, teacher: Sequence[int], student: Sequence[int]) -> CrossTask:
    """`teacher` and `student` are the classes each learned, `labels` of the same numbering; columns are those of both, sorted."""
    both = np.union1d(teacher, student)
    if labels.ndim != 1 or len(labels) == 0 or not np.isin(labels, both).all():
        raise InputError("labels: expected one class an image, of those the teacher or the student learned, and at least one image.")
    _refuse(logits, "logits", len(labels), len(both))
    right = both[logits.argmax(1)] == labels
    sides = [right[np.isin(labels, side)] for side in (teacher, student)]
    if not all(map(len, sides)):
        raise InputError("labels: no image of the teacher's classes, or none of the student's, so there's nothing to balance.")
    old, new = (float(side.mean()) for side in sides)
    return CrossTask(old, new, (old + new) / 2, statistics.harmonic_mean((old, new)))


def class_centres(embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """The mean embedding of each of `classes`."""
    missing = [label for label in classes if not (labels == label).any()]
    if missing:
        raise InputError(f"classes {missing} have no image to take a centre from.")
    return np.stack([embeddings[labels == label].mean(0, dtype=np.float64) for label in classes])


def centre_scores(embeddings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`-||embedding - centre||^2`, one row an image, one column a class: the logits of the nearest-centre classifier.

    By them a network tells classes apart that its own classifier doesn't know: the supplement of REFILLED asks for a model of the joint
    classes and says of none how it is made; our reading is the student's embedding with a centre for every class, as in its table 4.
    """
    embeddings = embeddings.astype(np.float64)
    squares = (embeddings**2).sum(1, keepdims=True) + (centres**2).sum(1)
    return 2 * embeddings @ centres.T - squares


def seen_auc(weights: np.ndarray, labels: np.ndarray, teacher: Sequence[int]) -> float | None:
    """How well the weights tell images of the teacher's classes from others: area under the ROC curve. None: all are of one kind."""
    seen = np.isin(labels, teacher)
    if seen.all() or not seen.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(seen, weights))


@dataclass(frozen=True)
class Gain:
    """Mean difference of accuracy and its 95 % interval (None where one seed can't tell)."""

    mean: float
    low: float | None
    high: float | None
    n: int  # pairs, or seeds of the smaller side
    paired: bool


def gain(run: Mapping[int, float], alone: Mapping[int, float]) -> Gain:
    """Accuracy gained over the student alone, both given by seed.

    Where one side's seeds all occur on the other, runs of equal seed (equal start, equal data order) are compared and the interval
    is that of the paired t test; otherwise it is Welch's.
    """
    if not run or not alone:
        raise InputError("gain: both the run and the student alone need the accuracy of at least one seed.")
    shared = sorted(run.keys() & alone.keys())
    paired = len(shared) == min(len(run), len(alone))
    if paired:
        sides = [np.array([run[seed] - alone[seed] for seed in shared])]
        mean = float(sides[0].mean())
    else:
        sides = [np.array(list(run.values())), np.array(list(alone.values()))]
        mean = float(sides[0].mean() - sides[1].mean())
    n = min(len(side) for side in sides)
    if n < 2:
        return Gain(mean, None, None, n, paired)
    variances = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = sum(variances)
    if total == 0:
        return Gain(mean, mean, mean, n, paired)
    from scipy.special import stdtrit

    freedom = total**2 / sum(v**2 / (len(side) - 1) for v, side in zip(variances, sides, strict=True))
    half = float(stdtrit(freedom, 0.975)) * total**0.5
    return Gain(mean, mean - half, mean + half, n, paired)


def _rank(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the right one."""
    own = np.take_along_axis(logits, labels[:, None], 1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def _refuse(logits: np.ndarray, what: str, n: int, classes: int) -> None:
    if logits.shape != (n, classes):
        raise InputError(f"{what}: shape {logits.shape}, expected {(n, classes)}, one row an image and one column a class of the data.")
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(1).sum())
        raise InputError(
            f"{what}: {bad} of {n} rows hold NaN or infinity; the network diverged, train it again with a smaller learning rate."
        )
