"""A finished student whose teacher learned other classes (REFILLED): what both together know of the test images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import saved
from pipeline.data.protocol import among
from pipeline.data.store import Store
from pipeline.evaluate import CrossTask, centre_scores, class_centres, confidence, cross_task, logits_of, seen_auc
from pipeline.functional import normalise
from pipeline.taps import Tapped

TAU = 2.0  # REFILLED's tau2


def known(store: Store, folder: Path) -> list[int]:
    """The classes of the store that a network tells apart."""
    return [store.classes.index(name) for name in saved.load(folder)[1]["classes"]]


def translated(labels: np.ndarray, taught: Sequence[int], learnt: Sequence[int]) -> np.ndarray:
    """Answers in the teacher's numbering of classes, in the student's; -1 for classes the student doesn't know."""
    place = {label: n for n, label in enumerate(learnt)}
    return np.array([place.get(label, -1) for label in taught], dtype=np.int32)[labels]


def measures(
    store: Store, teacher: Path, students: Mapping[int, Path], taught: Sequence[int], learnt: Sequence[int]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Means over the students, and the numbers of each by its seed."""
    each = {str(seed): asdict(across(store, folder, taught, learnt)) for seed, folder in students.items()}
    means = {key: float(np.mean([scores[key] for scores in each.values()])) for key in ("joint", "harmonic_mean")}
    auc = lambda_auc(store, teacher, taught, learnt)
    return means | ({} if auc is None else {"seen_auc": auc}), each


def across(store: Store, student: Path, taught: Sequence[int], learnt: Sequence[int]) -> CrossTask:
    """By nearest centre on the student's embedding, with centres of all training images of the classes of both."""
    both = sorted({*taught, *learnt})
    train, test = (among(store.labels, store.indices(split), both).rows for split in ("train", "test"))
    centres = class_centres(_embeddings(store, student, train), store.labels[train], both)
    return cross_task(centre_scores(_embeddings(store, student, test), centres), store.labels[test], taught, learnt)


def lambda_auc(store: Store, teacher: Path, taught: Sequence[int], learnt: Sequence[int]) -> float | None:
    """Of lambda_i on the test images of the student's classes, with centres of all their training images."""
    train, test = (among(store.labels, store.indices(split), learnt).rows for split in ("train", "test"))
    centres = class_centres(_embeddings(store, teacher, train), store.labels[train], learnt)
    return seen_auc(confidence(centre_scores(_embeddings(store, teacher, test), centres) / TAU), store.labels[test], taught)


def _embeddings(store: Store, folder: Path, rows: np.ndarray) -> np.ndarray:
    def pixels(images: np.ndarray) -> Tensor:
        return normalise(torch.as_tensor(images), store.mean, store.std)

    net, facts = saved.load(folder)
    tapped = Tapped(net, pixels(store.images[[0, 1]]), taps=facts["taps"])
    with torch.no_grad():
        return logits_of(lambda images: tapped(pixels(images)).pooled.numpy(), store.images, rows)
