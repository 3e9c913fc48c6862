"""What each network predicts for each test image: small arrays in a file, which the report reads later."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.export.calibration import confidence, thresholds
from pipeline.files import atomic_file
from pipeline.settings import InputError


@dataclass(frozen=True)
class Predictions:
    """The class that one network predicts for each image, and the probability that it gives to this class."""

    label: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray) -> "Predictions":
        return cls(logits.argmax(1).astype(np.int32), confidence(logits).astype(np.float32))


@dataclass(frozen=True)
class AllPredictions:
    """The predictions of a run's networks for the same images."""

    rows: np.ndarray  # the images, as rows of the data store
    labels: np.ndarray  # their true classes
    teacher: Predictions
    students: Mapping[int, Predictions]  # by seed


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence: their number, their mean confidence, and their accuracy."""

    n: int
    confidence: float
    accuracy: float


def save_predictions(file: Path, predictions: AllPredictions) -> None:
    students = list(predictions.students.values())
    arrays: dict[str, Any] = {
        "rows": predictions.rows.astype(np.int64),
        "labels": predictions.labels.astype(np.int32),
        "teacher": predictions.teacher.label,
        "teacher_confidence": predictions.teacher.confidence,
        "seeds": np.array(list(predictions.students), dtype=np.int64),
        "students": np.stack([student.label for student in students]),
        "confidences": np.stack([student.confidence for student in students]),
    }
    with atomic_file(file) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_predictions(file: Path) -> AllPredictions | None:
    """What `save_predictions` wrote, or None if there is no such file."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            students = zip(stored["seeds"].tolist(), stored["students"], stored["confidences"], strict=True)
            return AllPredictions(
                stored["rows"],
                stored["labels"],
                Predictions(stored["teacher"], stored["teacher_confidence"]),
                {seed: Predictions(label, confidence) for seed, label, confidence in students},
            )
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} holds no usable predictions ({error}). Run `dvc repro -f -s evaluate@{file.stem}`."
        ) from error


def reliability(predictions: Predictions, labels: np.ndarray, bins: int) -> list[Bin]:
    """The bins `((b-1)/bins, b/bins]` of the expected calibration error, empty ones included."""
    which = np.clip(
        np.ceil(predictions.confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1
    )
    n = np.bincount(which, minlength=bins)
    sure = np.bincount(which, weights=predictions.confidence, minlength=bins) / np.maximum(1, n)
    right = np.bincount(which, weights=predictions.label == labels, minlength=bins) / np.maximum(1, n)
    return [Bin(int(a), float(b), float(c)) for a, b, c in zip(n, sure, right, strict=True)]


def answered(predictions: Predictions, labels: np.ndarray) -> dict[str, Any]:
    """By threshold: the share of the images that get an answer, and the accuracy of these answers."""
    return thresholds(predictions.confidence.astype(np.float64), predictions.label == labels)


def outcomes(predictions: AllPredictions, seed: int) -> dict[str, int]:
    """How many images both networks, only one of them, or neither predicts right."""
    student = predictions.students[seed].label == predictions.labels
    teacher = predictions.teacher.label == predictions.labels
    return {
        "both right": int((student & teacher).sum()),
        "only the teacher right": int((~student & teacher).sum()),
        "only the student right": int((student & ~teacher).sum()),
        "both wrong": int((~student & ~teacher).sum()),
    }


def missed(predictions: AllPredictions, seed: int) -> np.ndarray:
    """Places of the images that the teacher predicts right and the student wrong, most confident first."""
    student, labels = predictions.students[seed], predictions.labels
    which = np.flatnonzero((student.label != labels) & (predictions.teacher.label == labels))
    order = np.argsort(-student.confidence[which], kind="stable")
    ranked: np.ndarray = which[order]
    return ranked
