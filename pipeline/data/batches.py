"""Batches of a training set, the same for the same seed and epoch, gathered and augmented without workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import AugmentConfig, augment
from pipeline.data.protocol import Sample
from pipeline.functional import normalise
from pipeline.inputs import InputError

RESIDENT_BYTES = 2 << 30  # up to here the training pixels are kept on the device


@dataclass(frozen=True)
class Batch:
    """Float NCHW images, their labels, and their positions in the training set.

    `share` is what to weigh its mean loss with, so that summed over the parts of a split and averaged over processes it is the mean
    over the global batch; 1 for a batch nobody shares.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    share: float = 1.0

    def split(self, parts: int) -> "list[Batch]":
        """Up to that many parts that differ in size by at most one and have at least two images (for batch norm)."""
        count = len(self.index)
        pieces = zip(*(each.tensor_split(max(1, min(parts, count // 2))) for each in (self.images, self.labels, self.index)), strict=True)
        return [Batch(images, labels, index, self.share * len(index) / count) for images, labels, index in pieces]


class Batches:
    """The training set `sample` of the store's `images` in seeded random order, a new order and a new view of each image every epoch.

    Views depend on (seed, row of the store, epoch), so that an image looks the same in every subset it belongs to.
    `shard` = (rank, world) gives each process its slice of every global batch; slices of a batch differ in size by at most one.
    A short last batch is kept, unless some process would get less than two images of it (batch norm can't train on one):
    then it is merged into the batch before.
    """

    def __init__(
        self,
        images: np.ndarray,
        sample: Sample,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: AugmentConfig | None,
        device: torch.device | str,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        rank, world = shard
        assert 0 <= rank < world
        if batch_size < world or len(sample.rows) < world:
            raise InputError(
                f"{world} processes can't share batches of {min(batch_size, len(sample.rows))} image(s): "
                "raise the batch size (or the shots), or start fewer processes."
            )
        self.batch_size, self.seed, self.augment, self.shard = batch_size, seed, augment, shard
        self.device = torch.device(device)
        self.mean = torch.tensor(mean, device=self.device)
        self.std = torch.tensor(std, device=self.device)
        self.rows = torch.as_tensor(sample.rows, dtype=torch.int64)
        self.labels = torch.as_tensor(sample.labels, dtype=torch.int64).to(self.device)
        self.source = images
        size = len(self.rows) * images[0].nbytes
        self.resident = torch.from_numpy(images[sample.rows]).to(self.device) if size <= RESIDENT_BYTES else None

    def __len__(self) -> int:
        """Steps an epoch."""
        steps, last = divmod(len(self.rows), self.batch_size)
        return max(1, steps + (last >= 2 * self.shard[1]))

    def epoch(self, n: int) -> Iterator[Batch]:
        rank, world = self.shard
        order = torch.from_numpy(np.random.default_rng([self.seed, n]).permutation(len(self.rows)))
        for step in range(len(self)):
            end = (step + 1) * self.batch_size if step < len(self) - 1 else len(order)
            everybodys = order[step * self.batch_size : end]
            chosen = torch.tensor_split(everybodys, world)[rank]
            index = chosen.to(self.device)
            images = normalise(self._pixels(chosen, index), self.mean, self.std)
            if self.augment:
                images = augment(images, self.rows[chosen].to(self.device), n, self.seed, self.augment)
            yield Batch(images, self.labels[index], index, world * len(index) / len(everybodys))

    def _pixels(self, chosen: Tensor, index: Tensor) -> Tensor:
        if self.resident is not None:
            return self.resident.index_select(0, index)
        return torch.from_numpy(self.source[self.rows[chosen].numpy()]).to(self.device)


def ordered(images: np.ndarray, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The uint8 images of `rows`, in their order, a batch at a time."""
    for start in range(0, len(rows), batch_size):
        yield images[rows[start : start + batch_size]]
