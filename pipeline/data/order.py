"""Which images of a train subset an epoch shows, and in which order.

The order is the same for the same seed and epoch, in every process.
"""

from typing import Literal

import numpy as np

ClassBalance = Literal["none", "sampler", "weights"]


def epoch_order(labels: np.ndarray, *, seed: int, epoch: int, class_balance: ClassBalance) -> np.ndarray:
    """As many places in the subset as it has images; `labels` are those of its images.

    Every image once, or with `sampler` every class equally often.
    """
    random = np.random.default_rng([seed, epoch])
    if class_balance == "sampler":
        return balanced_order(labels, len(labels), seed=seed, epoch=epoch, random=random)
    return random.permutation(len(labels))


def balanced_order(
    labels: np.ndarray, count: int, *, seed: int, epoch: int, random: np.random.Generator
) -> np.ndarray:
    """`count` places. The classes take turns, from epoch to epoch; the turns of one epoch are shuffled."""
    classes = np.unique(labels)
    first = epoch * count  # turn of all epochs
    turns = random.permutation(np.arange(first, first + count) % len(classes))
    order = np.empty(count, dtype=np.int64)
    for n, label in enumerate(classes):
        earlier = (first + len(classes) - 1 - n) // len(classes)  # turns that the class had before this epoch
        mine = np.flatnonzero(turns == n)
        order[mine] = _dealt(np.flatnonzero(labels == label), earlier, len(mine), [seed, int(label)])
    return order


def _dealt(places: np.ndarray, start: int, count: int, seed: list[int]) -> np.ndarray:
    """Cards `start` to `start + count` of an endless row of shuffled packs, each of all `places`.

    So every image of a class is used before one is used again, also from epoch to epoch.
    """
    first, last = start // len(places), (start + count) // len(places)
    packs = [np.random.default_rng([*seed, pack]).permutation(places) for pack in range(first, last + 1)]
    skipped = start - first * len(places)
    return np.concatenate(packs)[skipped : skipped + count]
