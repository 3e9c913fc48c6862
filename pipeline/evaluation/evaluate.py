"""A run's students and their teacher on the test split, which is read here once."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint import best_seed, load_facts, student_folders
from pipeline.data.protocol import Subset, rows_of_classes
from pipeline.data.store import Store
from pipeline.device import keep_memory
from pipeline.evaluation.cross_task import evaluate_cross_task
from pipeline.evaluation.logits import kept_logits, logits_for
from pipeline.evaluation.predictions import AllPredictions, Predictions
from pipeline.evaluation.scores import score, summarise
from pipeline.files import sha256
from pipeline.records.record import Result


def evaluate_run(data: Path, teacher: Path, students: Path, *, work: Path) -> tuple[Result, AllPredictions]:
    """Scores of the teacher and of each seed's student, and their predictions for each test image.

    Both are scored on the images of their own classes. The predictions are all for the images of the
    student's classes. The work folder keeps what the teacher answers, for its other runs.
    """
    keep_memory()
    store, folders, best = Store.open(data), student_folders(students), best_seed(students)
    student_classes, teacher_classes = _classes(store, folders[best]), _classes(store, teacher)
    same = student_classes == teacher_classes
    images, teacher_images = _test_images(store, student_classes), _test_images(store, teacher_classes)
    teacher_logits = kept_logits(store, teacher, teacher_images.rows, work=work)
    logits = {seed: logits_for(store, folder, images.rows) for seed, folder in folders.items()}
    scores = {
        seed: score(each, images.labels, len(student_classes), teacher_logits if same else None)
        for seed, each in logits.items()
    }
    result = Result(
        inputs={"data": store.content, "teacher": sha256(teacher), "students": sha256(students)},
        metrics=summarise(list(scores.values())),
        details={
            "classes": [store.classes[n] for n in student_classes],
            "teacher": _scores_of_teacher(store, teacher_logits, teacher_images),
            "seeds": {str(seed): asdict(each) for seed, each in scores.items()},
            "exported_seed": best,
        },
    )
    if not same:
        means, result.details["cross_task"] = evaluate_cross_task(
            store, teacher, folders, teacher_classes, student_classes
        )
        result.metrics |= means
        teacher_logits = kept_logits(store, teacher, images.rows, work=work)
    by_teacher = Predictions.of(teacher_logits)
    by_teacher = replace(by_teacher, label=renumber(by_teacher.label, teacher_classes, student_classes))
    by_students = {seed: Predictions.of(each) for seed, each in logits.items()}
    return result, AllPredictions(images.rows, images.labels, by_teacher, by_students)


def renumber(labels: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Labels that count the classes `old`, as labels that count the classes `new`; -1 for others."""
    place = {label: n for n, label in enumerate(new)}
    new_labels: np.ndarray = np.array([place.get(label, -1) for label in old], dtype=np.int32)[labels]
    return new_labels


def _scores_of_teacher(store: Store, logits: np.ndarray, images: Subset) -> dict[str, Any]:
    """On the test images of the teacher's own classes."""
    scores = score(logits, images.labels, len(images.classes))
    return asdict(scores) | {"classes": [store.classes[n] for n in images.classes]}


def _classes(store: Store, folder: Path) -> list[int]:
    """The classes of the store that a network tells apart."""
    return [store.classes.index(name) for name in load_facts(folder)["classes"]]


def _test_images(store: Store, classes: Sequence[int]) -> Subset:
    return rows_of_classes(store.labels, store.indices("test"), classes)
