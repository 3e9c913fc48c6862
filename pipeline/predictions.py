"""What each network said of every test image: small arrays beside the evaluate record, to look closer at later."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint import atomic_file
from pipeline.evaluate import confidence
from pipeline.inputs import InputError


@dataclass(frozen=True)
class Said:
    """The class that one network chose for each image, and the probability it gave it."""

    label: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray) -> "Said":
        return cls(logits.argmax(1).astype(np.int32), confidence(logits).astype(np.float32))


@dataclass(frozen=True)
class Predictions:
    rows: np.ndarray  # of the data store
    labels: np.ndarray  # what is right
    teacher: Said
    students: Mapping[int, Said]  # by seed


@dataclass(frozen=True)
class Bin:
    """Predictions of nearly the same confidence: how many, how sure they were on average, and what share of them is right."""

    n: int
    confidence: float
    accuracy: float


def save(file: Path, said: Predictions) -> None:
    students = list(said.students.values())
    arrays: dict[str, Any] = {
        "rows": said.rows.astype(np.int64),
        "labels": said.labels.astype(np.int32),
        "teacher": said.teacher.label,
        "teacher_confidence": said.teacher.confidence,
        "seeds": np.array(list(said.students), dtype=np.int64),
        "students": np.stack([student.label for student in students]),
        "confidences": np.stack([student.confidence for student in students]),
    }
    with atomic_file(file) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def load(file: Path) -> Predictions | None:
    """What `save` wrote, or None where nothing is."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            students = zip(stored["seeds"].tolist(), stored["students"], stored["confidences"], strict=True)
            return Predictions(
                stored["rows"],
                stored["labels"],
                Said(stored["teacher"], stored["teacher_confidence"]),
                {seed: Said(label, confidence) for seed, label, confidence in students},
            )
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: no usable predictions there ({error}). Run `dvc repro -f -s evaluate@{file.stem}`.") from error


def reliability(said: Said, labels: np.ndarray, bins: int) -> list[Bin]:
    """The bins `((b-1)/bins, b/bins]` of the expected calibration error; those that hold no prediction are empty."""
    which = np.clip(np.ceil(said.confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    n = np.bincount(which, minlength=bins)
    sure = np.bincount(which, weights=said.confidence, minlength=bins) / np.maximum(1, n)
    right = np.bincount(which, weights=said.label == labels, minlength=bins) / np.maximum(1, n)
    return [Bin(int(a), float(b), float(c)) for a, b, c in zip(n, sure, right, strict=True)]


def outcomes(said: Predictions, seed: int) -> dict[str, int]:
    """How many images both networks get right, only one of them, or neither."""
    student, teacher = said.students[seed].label == said.labels, said.teacher.label == said.labels
    return {
        "both right": int((student & teacher).sum()),
        "only the teacher right": int((~student & teacher).sum()),
        "only the student right": int((student & ~teacher).sum()),
        "both wrong": int((~student & ~teacher).sum()),
    }


def missed(said: Predictions, seed: int) -> np.ndarray:
    """Which images the student gets wrong and the teacher right; first those of which the student is surest."""
    student = said.students[seed]
    which = np.flatnonzero((student.label != said.labels) & (said.teacher.label == said.labels))
    return which[np.argsort(-student.confidence[which], kind="stable")]
