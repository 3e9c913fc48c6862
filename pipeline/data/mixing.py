"""Batches in which labelled and unlabelled images have a set share: which images, and in which order."""

from dataclasses import dataclass

import numpy as np

from pipeline.data.order import ClassBalance, balanced_order
from pipeline.settings import InputError


@dataclass(frozen=True)
class Mixture:
    """Of each batch of `batch_size`, `in_batch` images are labelled. Images are numbered, the labelled first.

    An epoch shows every image at least once. The smaller of the two groups comes again and again, each time
    in a new order, and every batch is full.
    """

    labelled: int
    unlabelled: int
    batch_size: int
    in_batch: int

    @classmethod
    def of(cls, labelled: int, unlabelled: int, batch_size: int, unlabelled_share: float) -> "Mixture":
        """As near to the wanted share as whole images can be, with one image of each kind or more."""
        in_batch = round((1 - unlabelled_share) * batch_size)
        return cls(labelled, unlabelled, batch_size, min(max(1, in_batch), batch_size - 1))

    @property
    def share(self) -> float:
        """The share of labelled images."""
        return self.in_batch / self.batch_size

    def check(self, parts: int) -> None:
        """Refuse batches that cannot give each of `parts` parts a labelled image."""
        smallest = self.batch_size // parts
        if self.in_batch * smallest < self.batch_size:
            raise InputError(
                f"train.unlabelled_share leaves {self.in_batch} labelled image(s) in a batch of "
                f"{self.batch_size}. The batch is cut into {parts} parts (processes x train.accumulate), and "
                "each of them needs one. Lower unlabelled_share, or raise train.batch_size."
            )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        others = self.batch_size - self.in_batch
        return max(-(-self.labelled // self.in_batch), -(-self.unlabelled // others))

    def order(self, labels: np.ndarray, *, seed: int, epoch: int, class_balance: ClassBalance) -> np.ndarray:
        """The images of an epoch, batch after batch. In each batch the labelled ones are spread evenly."""
        random, wanted = np.random.default_rng([seed, epoch]), len(self) * self.in_batch
        if class_balance == "sampler":
            of_labelled = balanced_order(labels, wanted, seed=seed, epoch=epoch, random=random)
        else:
            of_labelled = _dealt(self.labelled, wanted, random)
        others = self.labelled + _dealt(
            self.unlabelled, len(self) * (self.batch_size - self.in_batch), random
        )
        is_labelled = np.diff(np.arange(self.batch_size + 1) * self.in_batch // self.batch_size) > 0
        order = np.empty((len(self), self.batch_size), dtype=np.int64)
        order[:, is_labelled] = of_labelled.reshape(len(self), -1)
        order[:, ~is_labelled] = others.reshape(len(self), -1)
        return order.ravel()


def _dealt(count: int, wanted: int, random: np.random.Generator) -> np.ndarray:
    """So many of the numbers below `count`: each comes once before one comes again."""
    rounds = -(-wanted // count)
    return np.concatenate([random.permutation(count) for _ in range(rounds)])[:wanted]
