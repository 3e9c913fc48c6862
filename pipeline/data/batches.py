"""Batches of a train subset: the same for the same seed and epoch, gathered and augmented without workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import AugmentConfig, augment
from pipeline.data.protocol import Subset
from pipeline.functional import normalise
from pipeline.settings import InputError

RESIDENT_BYTES = 2 << 30  # up to this size the pixels of a subset are kept on the device


@dataclass(frozen=True)
class Batch:
    """Images B x C x H x W, their labels, and their positions (`index`) in the train subset.

    `share` is the weight of the batch's mean loss: summed over the parts of `split` and averaged over
    processes, the weighted losses give the mean over the global batch. It is 1 for a whole batch of one
    process.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    share: float = 1.0

    def split(self, parts: int) -> "list[Batch]":
        """At most `parts` parts of nearly equal size, each with two images or more (for batch norm)."""
        count = len(self.index)
        wanted = max(1, min(parts, count // 2))
        pieces = zip(
            *(each.tensor_split(wanted) for each in (self.images, self.labels, self.index)), strict=True
        )
        return [
            Batch(images, labels, index, self.share * len(index) / count) for images, labels, index in pieces
        ]


class Batches:
    """The images of a train subset in batches. Each epoch has a new random order and new views.

    A view depends on (seed, row of the store, epoch), so an image has the same views in every subset. `shard`
    = (rank, world) gives each process its slice of every global batch. The slices of a batch differ in size
    by at most one. Batch norm cannot train on one image, so a short last batch joins the batch before it if a
    process would get fewer than two images of it.
    """

    def __init__(
        self,
        images: np.ndarray,
        subset: Subset,
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
        if batch_size < world or len(subset.rows) < world:
            raise InputError(
                f"{world} processes cannot share batches of {min(batch_size, len(subset.rows))} image(s). "
                "Raise the batch size (or the shots), or start fewer processes."
            )
        self.batch_size, self.seed, self.augment, self.shard = batch_size, seed, augment, shard
        self.device = torch.device(device)
        self.mean = torch.tensor(mean, device=self.device)
        self.std = torch.tensor(std, device=self.device)
        self.rows = torch.as_tensor(subset.rows, dtype=torch.int64)
        self.rows_on_device = self.rows.to(self.device)
        self.labels = torch.as_tensor(subset.labels, dtype=torch.int64).to(self.device)
        self.source = images
        size = len(self.rows) * images[0].nbytes
        self.resident = (
            torch.from_numpy(images[subset.rows]).to(self.device) if size <= RESIDENT_BYTES else None
        )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        steps, last = divmod(len(self.rows), self.batch_size)
        return max(1, steps + (last >= 2 * self.shard[1]))

    def epoch(self, n: int) -> Iterator[Batch]:
        """The batches of epoch `n`: of each batch, the slice of this process."""
        rank, world = self.shard
        order = torch.from_numpy(np.random.default_rng([self.seed, n]).permutation(len(self.rows)))
        on_device = order.to(self.device)  # once an epoch, so that no step waits for the device
        for step in range(len(self)):
            end = (step + 1) * self.batch_size if step < len(self) - 1 else len(order)
            chosen, index = (
                torch.tensor_split(each[step * self.batch_size : end], world)[rank]
                for each in (order, on_device)
            )
            images = normalise(self._pixels(chosen, index), self.mean, self.std)
            if self.augment:
                images = augment(images, self.rows_on_device[index], n, self.seed, self.augment)
            share = world * len(index) / (end - step * self.batch_size)
            yield Batch(images, self.labels[index], index, share)

    def _pixels(self, chosen: Tensor, index: Tensor) -> Tensor:
        if self.resident is not None:
            return self.resident.index_select(0, index)
        return torch.from_numpy(self.source[self.rows[chosen].numpy()]).to(self.device)


def ordered(images: np.ndarray, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The uint8 images of `rows` in the given order, one batch at a time."""
    for start in range(0, len(rows), batch_size):
        yield images[rows[start : start + batch_size]]
