"""What a student gets to see of the training set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from pipeline.inputs import InputError, Settings


class ProtocolConfig(Settings):
    """`shots`: labelled images a class for the student, 0 for all; `seed` draws them."""

    shots: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Sample:
    """A training set: rows of the store and the labels to learn for them, which need not be the store's."""

    rows: np.ndarray
    labels: np.ndarray


def subset(labels: np.ndarray, train: np.ndarray, cfg: ProtocolConfig, *, classes: Sequence[str]) -> Sample:
    """The rows among `train` that `cfg` grants. At one seed fewer shots are a subset of more."""
    rows = np.sort(train)
    if cfg.shots:
        rows = np.sort(np.concatenate([_drawn(rows[labels[rows] == label], label, cfg, name) for label, name in enumerate(classes)]))
    return Sample(rows, labels[rows])


def _drawn(rows: np.ndarray, label: int, cfg: ProtocolConfig, name: str) -> np.ndarray:
    if len(rows) < cfg.shots:
        raise InputError(
            f"protocol.shots: {cfg.shots} images a class are asked for, but class {name!r} has {len(rows)} in the training split. "
            "Lower it, or use 0 for all."
        )
    return np.random.default_rng([cfg.seed, label]).permutation(rows)[: cfg.shots]
