"""Scores of a student whose teacher has other classes (REFILLED): what both together know of the test images.

Here a network tells the classes of both apart, also those that its own classifier does not have, by the
nearest centre in its embedding. The supplement of REFILLED asks for a model of the joint classes and does not
say how to make one. *Our reading:* the student's embedding with a centre for each class, as in the paper's
table 4.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint import load_network
from pipeline.data.protocol import rows_of_classes
from pipeline.data.seen import Seen
from pipeline.data.store import Store
from pipeline.device import best_device, products
from pipeline.evaluation.scores import check_logits, logits_of
from pipeline.export.calibration import confidence
from pipeline.functional import Input, auc, centre_products, centre_scores, normalise
from pipeline.settings import InputError
from pipeline.taps.tapped import Tapped

TAU = 2.0  # REFILLED's tau2


@dataclass(frozen=True)
class CrossTask:
    """Accuracies, from 0 to 1, among the classes of teacher and student together.

    `old` is the accuracy on images of the teacher's classes, `new` on images of the student's; a class that
    both have counts in both. `joint` is their mean: the accuracy if both sides have equally many images.
    """

    old: float
    new: float
    joint: float
    harmonic_mean: float


def evaluate_cross_task(
    store: Store,
    teacher: Path,
    students: Mapping[int, Path],
    teacher_classes: Sequence[int],
    student_classes: Sequence[int],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Means over the students with the teacher's `seen_auc`, and the scores of each student by its seed."""
    scores = {
        str(seed): asdict(_joint_scores(store, folder, teacher_classes, student_classes))
        for seed, folder in students.items()
    }
    means = {
        key: float(np.mean([each[key] for each in scores.values()])) for key in ("joint", "harmonic_mean")
    }
    auc = _lambda_auc(store, teacher, teacher_classes, student_classes)
    return means | ({} if auc is None else {"seen_auc": auc}), scores


def cross_task_scores(
    logits: np.ndarray, labels: np.ndarray, teacher_classes: Sequence[int], student_classes: Sequence[int]
) -> CrossTask:
    """`labels` are positions in the store's list of classes, and so are the classes of both sides.

    The columns of `logits` are the classes of teacher and student together, in order of position.
    """
    both = np.union1d(teacher_classes, student_classes)
    if labels.ndim != 1 or len(labels) == 0 or not np.isin(labels, both).all():
        raise InputError(
            "labels: expected at least one image, and for each a class that the teacher or the student has."
        )
    check_logits(logits, "logits", len(labels), len(both))
    right = both[logits.argmax(1)] == labels
    sides = [right[np.isin(labels, side)] for side in (teacher_classes, student_classes)]
    if not all(map(len, sides)):
        raise InputError("labels: there is no image of the teacher's classes, or none of the student's.")
    old, new = (float(side.mean()) for side in sides)
    return CrossTask(old, new, (old + new) / 2, statistics.harmonic_mean((old, new)))


def class_centres(embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """The mean embedding of each of `classes`."""
    missing = [label for label in classes if not (labels == label).any()]
    if missing:
        raise InputError(f"The classes {missing} have no image, so they have no centre.")
    return np.stack([embeddings[labels == label].mean(0, dtype=np.float64) for label in classes])


def seen_auc(weights: np.ndarray, labels: np.ndarray, teacher_classes: Sequence[int]) -> float | None:
    """How well the weights tell images of the teacher's classes from others: the area under the ROC curve.

    None if all images are of the teacher's classes, or none is.
    """
    seen = np.isin(labels, teacher_classes)
    if seen.all() or not seen.any():
        return None
    values = torch.from_numpy(weights)
    return auc(values[seen], values[~seen])


def _joint_scores(
    store: Store, student: Path, teacher_classes: Sequence[int], student_classes: Sequence[int]
) -> CrossTask:
    """By the nearest centre of the classes of both in the student's embedding."""
    both = sorted({*teacher_classes, *student_classes})
    scores, labels = _nearest_centres(store, student, both)
    return cross_task_scores(scores, labels, teacher_classes, student_classes)


def _lambda_auc(
    store: Store, teacher: Path, teacher_classes: Sequence[int], student_classes: Sequence[int]
) -> float | None:
    """How well lambda_i, REFILLED's weight of an image, tells images of the teacher's classes from others.

    The images are those of the student's classes.
    """
    scores, labels = _nearest_centres(store, teacher, student_classes, score=centre_products)
    return seen_auc(confidence(scores / TAU), labels, teacher_classes)


def _nearest_centres(
    store: Store,
    network: Path,
    classes: Sequence[int],
    *,
    score: Callable[[Tensor, Tensor], Tensor] = centre_scores,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, B x classes, of all test images of `classes` by the nearest centre, and the labels of these
    images.

    A centre is the mean embedding of all training images of its class.
    """
    train, test = (
        rows_of_classes(store.labels, store.indices(split), classes).rows for split in ("train", "test")
    )
    centres = class_centres(_embeddings(store, network, train), store.labels[train], classes)
    embeddings = torch.from_numpy(_embeddings(store, network, test)).double()
    scores: np.ndarray = score(embeddings, torch.from_numpy(centres)).numpy()
    return scores, store.labels[test]


def _embeddings(store: Store, folder: Path, rows: np.ndarray) -> np.ndarray:
    def pixels(images: np.ndarray) -> Tensor:
        return normalise(torch.as_tensor(images).to(device), input.mean, input.std)

    def pooled(images: np.ndarray) -> np.ndarray:
        answer: np.ndarray = tapped(pixels(images)).pooled.cpu().numpy()
        return answer

    net, facts = load_network(folder)
    device = best_device()
    input = Input.from_facts(facts["input"])
    seen = Seen(store.images, input.size)
    tapped = Tapped(net.to(device), pixels(seen[np.arange(2)]), taps=facts["taps"])
    with torch.no_grad(), products(tf32=False):
        return logits_of(pooled, seen, rows)
