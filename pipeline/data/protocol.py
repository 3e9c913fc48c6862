"""What a student may learn from: which training images, with which labels, of which classes.

- `shots` or `fraction`: this many labelled images of every class, or this share of them. With the same seed,
  a smaller subset is part of a larger one.
- `label_noise`: this share of the student's training labels is wrong. A wrong label is any other class, each
  with the same probability. A label that is wrong at 0.2 has the same wrong class at 0.4. Validation labels,
  test labels and the teacher's training labels stay clean.
- `rest`: with `unlabelled`, students also see the training images that `shots` or `fraction` leave out, but
  without their labels.
- `class_overlap`: with `all`, both networks learn every class. With a number, teacher and student learn half
  of the classes each, and this share of the student's classes is the teacher's too (the cross-task setting of
  REFILLED). The teacher's half is the same at every overlap, so one teacher serves all of them. The student's
  half moves away from it, so the student's own accuracy changes with the overlap, as in the paper. *Our
  reading*: half of the classes. The paper does not give the number.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipeline.settings import InputError, Settings

NO_ROWS = np.empty(0, dtype=np.int64)


class ProtocolConfig(Settings):
    """What students may learn from.

    `class_overlap` and `class_seed` hold for all runs, because runs share their teachers. The rest may differ
    from run to run.
    """

    shots: int = Field(0, ge=0, description="labelled images of each class for the student; 0: all")
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of each class's training images for the student"
    )
    rest: Literal["unused", "unlabelled"] = Field(
        "unused",
        description="the training images beyond `shots` or `fraction`; unlabelled: seen without their labels",
    )
    label_noise: float = Field(
        0.0, ge=0, le=1, description="share of the student's training labels that are wrong"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="which images, which labels")
    class_overlap: float | Literal["all"] = Field(
        "all",
        description="share of the student's classes that its teacher knows; all: both learn every class",
    )
    class_seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="which classes; not `seed`, so that other images do not need other teachers",
    )

    @field_validator("class_overlap", mode="before")
    @classmethod
    def _share_or_all(cls, overlap: Any) -> Any:
        number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
        if overlap != "all" and not (number and 0 <= overlap <= 1):
            raise ValueError(
                "must be a number from 0 to 1, or all: teacher and student both learn every class"
            )
        return overlap

    @model_validator(mode="after")
    def _shots_or_fraction(self) -> "ProtocolConfig":
        if self.shots and self.fraction < 1:
            raise ValueError(
                f"shots is {self.shots} and fraction {self.fraction:g}: only one of them can choose "
                "the images. Set shots to 0 or fraction to 1"
            )
        return self

    @model_validator(mode="after")
    def _leaves_a_rest(self) -> "ProtocolConfig":
        if self.rest == "unlabelled" and not self.draws_a_part:
            raise ValueError(
                "rest is unlabelled, but all training images keep their labels. Set shots, or fraction below "
                "1, or leave `rest` out"
            )
        return self

    @property
    def draws_a_part(self) -> bool:
        """Whether some training images are left out."""
        return bool(self.shots) or self.fraction < 1


@dataclass(frozen=True)
class Subset:
    """Images to learn from: rows of the store, and a label for each, which may differ from the store's.

    `classes[label]` is the class of the store that a label means. It is empty if the labels are the store's.
    `unlabelled` are rows of more images, which have no labels.
    """

    rows: np.ndarray
    labels: np.ndarray
    classes: tuple[int, ...] = ()
    unlabelled: np.ndarray = field(default_factory=lambda: NO_ROWS)


def class_sets(classes: Sequence[str], cfg: ProtocolConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The classes of the teacher and those of the student, as sorted positions in `classes`."""
    if cfg.class_overlap == "all":
        everything = tuple(range(len(classes)))
        return everything, everything
    half = len(classes) // 2
    if half < 2:
        raise InputError(
            f"protocol.class_overlap: {len(classes)} classes are too few to be halved into two tasks of two "
            "classes or more. Use `all`, or data of at least four classes."
        )
    random = np.random.default_rng([cfg.class_seed, zlib.crc32(b"class sets")])
    order = random.permutation(len(classes)).tolist()
    start = half - int(cfg.class_overlap * half + 0.5)
    return tuple(sorted(order[:half])), tuple(sorted(order[start : start + half]))


def rows_of_classes(labels: np.ndarray, rows: np.ndarray, ids: Sequence[int]) -> Subset:
    """Those of `rows` whose class is in `ids`. A label is the position of the class in `ids`."""
    place = np.full(max(int(labels.max()), *ids) + 1, -1)
    place[list(ids)] = np.arange(len(ids))
    chosen = rows[place[labels[rows]] >= 0]
    return Subset(chosen, place[labels[chosen]], tuple(ids))


def draw_subset(
    labels: np.ndarray,
    train: np.ndarray,
    cfg: ProtocolConfig,
    *,
    classes: Sequence[str],
    ids: Sequence[int] | None = None,
    unlabelled: np.ndarray = NO_ROWS,
) -> Subset:
    """What `cfg` draws from the rows `train` for a student of the classes `ids`, or of all classes.

    Rows that are `unlabelled` in the store are added to those that `cfg` leaves without labels.
    """
    ids = range(len(classes)) if ids is None else ids
    train = np.sort(train)
    everything = rows_of_classes(labels, train, ids)
    subset = everything
    if cfg.draws_a_part:
        of_classes = (train[labels[train] == label] for label in ids)
        drawn = [
            _drawn(rows, label, cfg, classes[label]) for rows, label in zip(of_classes, ids, strict=True)
        ]
        subset = rows_of_classes(labels, np.sort(np.concatenate(drawn)), ids)
    if cfg.label_noise:
        subset = _with_wrong_labels(subset, train, cfg)
    rest = np.setdiff1d(everything.rows, subset.rows) if cfg.rest == "unlabelled" else NO_ROWS
    return replace(subset, unlabelled=np.concatenate([rest, unlabelled]))


def describe_subset(subset: Subset, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """What was drawn, for the record: counts by true class, hashes of the images and of the wrong labels."""
    true = rows_of_classes(labels, subset.rows, subset.classes).labels
    flipped = np.flatnonzero(subset.labels != true)
    return {
        "classes": [classes[label] for label in subset.classes],
        "images": len(subset.rows),
        "per_class": {classes[label]: int((true == n).sum()) for n, label in enumerate(subset.classes)},
        "sha256": _hash(subset.rows),
        "flipped": len(flipped),
        "flipped_sha256": _hash(subset.rows[flipped], subset.labels[flipped]),
        "unlabelled": len(subset.unlabelled),
        "unlabelled_sha256": _hash(subset.unlabelled),
    }


def _drawn(rows: np.ndarray, label: int, cfg: ProtocolConfig, name: str) -> np.ndarray:
    if len(rows) < cfg.shots:
        raise InputError(
            f"protocol.shots: {cfg.shots} images of each class are wanted, but class {name!r} has only "
            f"{len(rows)} training images. Lower it, or use 0 for all."
        )
    count = cfg.shots or max(1, int(cfg.fraction * len(rows) + 0.5))
    return np.random.default_rng([cfg.seed, label]).permutation(rows)[:count]


def _with_wrong_labels(subset: Subset, train: np.ndarray, cfg: ProtocolConfig) -> Subset:
    """Every training row has its own random numbers, so an image has the same wrong label in every subset."""
    random = np.random.default_rng([cfg.seed, zlib.crc32(b"label noise")])
    place = np.searchsorted(train, subset.rows)
    rank, shift = random.random(len(train))[place], random.integers(1, len(subset.classes), len(train))[place]
    flipped = np.argsort(rank, kind="stable")[: int(cfg.label_noise * len(rank) + 0.5)]
    labels = subset.labels.copy()
    labels[flipped] = (labels[flipped] + shift[flipped]) % len(subset.classes)
    return replace(subset, labels=labels)


def _hash(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
