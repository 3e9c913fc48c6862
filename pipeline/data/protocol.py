"""Who learns from what: the students' share of the training set, its labels, and the classes each side knows.

- `shots` or `fraction`: so many labelled images of every class, or that share of them. At one seed fewer are among more.
- `label_noise`: that share of the student's training labels, each turned into another class at random, all others equally likely. Labels
  flipped at .2 are flipped to the same classes at .4. Validation and test keep theirs, and so does the teacher's training set.
- `class_overlap`: `all`, and both sides learn every class; or a number, and teacher and student learn half of the classes each, that share
  of the student's being the teacher's as well (REFILLED's cross-task setting). The teacher's half stays the same at every overlap, so that
  one teacher serves them all, and the student's moves from it to the other half: in the paper, too, the student's own accuracy changes
  with the overlap. Half is our reading: the supplement doesn't count them, but a student of its table 2 is 5 points better at overlap 1
  than with all 100 classes in table 3.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipeline.inputs import InputError, Settings


class ProtocolConfig(Settings):
    """`class_overlap` and `class_seed` hold for all runs, since they share their teachers; the rest may differ from run to run."""

    shots: int = Field(0, ge=0, description="labelled images a class for the student; 0: all")
    fraction: float = Field(1.0, gt=0, le=1, description="share of every class's training images for the student")
    label_noise: float = Field(0.0, ge=0, le=1, description="share of the student's training labels that are wrong")
    seed: int = Field(0, ge=0, description="which images, which labels")
    class_overlap: float | Literal["all"] = Field("all", description="share of the student's classes that its teacher knows")
    class_seed: int = Field(0, ge=0, description="which classes; apart from `seed`, so that other images don't mean other teachers")

    @field_validator("class_overlap", mode="before")
    @classmethod
    def _share_or_all(cls, overlap: Any) -> Any:
        number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
        if overlap != "all" and not (number and 0 <= overlap <= 1):
            raise ValueError("must be a number from 0 to 1, or all: teacher and student both learn every class")
        return overlap

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> "ProtocolConfig":
        if self.shots and self.fraction < 1:
            raise ValueError(f"shots is {self.shots} and fraction {self.fraction:g}: only one can choose. Set shots to 0 or fraction to 1")
        return self


@dataclass(frozen=True)
class Sample:
    """Images to learn from: rows of the store and the labels to learn for them, which need not be the store's.

    `classes` says which class of the store each label means; empty where labels are the store's.
    """

    rows: np.ndarray
    labels: np.ndarray
    classes: tuple[int, ...] = ()


def class_sets(classes: Sequence[str], cfg: ProtocolConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The classes the teacher learns and those the student learns, as sorted positions in `classes`."""
    if cfg.class_overlap == "all":
        everything = tuple(range(len(classes)))
        return everything, everything
    half = len(classes) // 2
    if half < 2:
        raise InputError(
            f"protocol.class_overlap: {len(classes)} classes can't be halved into two tasks of two. "
            "Use `all`, or data of at least four classes."
        )
    order = np.random.default_rng([cfg.class_seed, zlib.crc32(b"class sets")]).permutation(len(classes)).tolist()
    start = half - int(cfg.class_overlap * half + 0.5)
    return tuple(sorted(order[:half])), tuple(sorted(order[start : start + half]))


def among(labels: np.ndarray, rows: np.ndarray, ids: Sequence[int]) -> Sample:
    """Those of `rows` that show one of the classes `ids`, in their order; a label is the place of its class in `ids`."""
    place = np.full(max(int(labels.max()), *ids) + 1, -1)
    place[list(ids)] = np.arange(len(ids))
    learnt = rows[place[labels[rows]] >= 0]
    return Sample(learnt, place[labels[learnt]], tuple(ids))


def subset(
    labels: np.ndarray, train: np.ndarray, cfg: ProtocolConfig, *, classes: Sequence[str], ids: Sequence[int] | None = None
) -> Sample:
    """What `cfg` grants of the rows `train` to a student that learns the classes `ids`, all of them unless given."""
    ids = range(len(classes)) if ids is None else ids
    rows = np.sort(train)
    if cfg.shots or cfg.fraction < 1:
        rows = np.sort(np.concatenate([_drawn(rows[labels[rows] == label], label, cfg, classes[label]) for label in ids]))
    sample = among(labels, rows, ids)
    return _mislabelled(sample, np.sort(train), cfg) if cfg.label_noise else sample


def describe(sample: Sample, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """What was drawn, for the record: counts by true class, and hashes that differ where the images, labels or flips do."""
    true = among(labels, sample.rows, sample.classes).labels
    flipped = np.flatnonzero(sample.labels != true)
    return {
        "classes": [classes[label] for label in sample.classes],
        "images": len(sample.rows),
        "per_class": {classes[label]: int((true == n).sum()) for n, label in enumerate(sample.classes)},
        "sha256": _hash(sample.rows),
        "flipped": len(flipped),
        "flipped_sha256": _hash(sample.rows[flipped], sample.labels[flipped]),
    }


def _drawn(rows: np.ndarray, label: int, cfg: ProtocolConfig, name: str) -> np.ndarray:
    if len(rows) < cfg.shots:
        raise InputError(
            f"protocol.shots: {cfg.shots} images a class are asked for, but class {name!r} has {len(rows)} in the training split. "
            "Lower it, or use 0 for all."
        )
    count = cfg.shots or max(1, int(cfg.fraction * len(rows) + 0.5))
    return np.random.default_rng([cfg.seed, label]).permutation(rows)[:count]


def _mislabelled(sample: Sample, train: np.ndarray, cfg: ProtocolConfig) -> Sample:
    """Every training row has its own draws, whichever of them the sample holds, so that an image's wrong label is always the same."""
    random = np.random.default_rng([cfg.seed, zlib.crc32(b"label noise")])
    place = np.searchsorted(train, sample.rows)
    rank, shift = random.random(len(train))[place], random.integers(1, len(sample.classes), len(train))[place]
    flipped = np.argsort(rank, kind="stable")[: int(cfg.label_noise * len(rank) + 0.5)]
    labels = sample.labels.copy()
    labels[flipped] = (labels[flipped] + shift[flipped]) % len(sample.classes)
    return Sample(sample.rows, labels, sample.classes)


def _hash(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
