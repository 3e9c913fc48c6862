"""Batches of a train subset: the same for the same seed and epoch, gathered and augmented without workers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import AugmentConfig
from pipeline.data.order import ClassBalance, epoch_order
from pipeline.data.protocol import Subset
from pipeline.data.views import Rows, Views
from pipeline.functional import Input, class_weights
from pipeline.settings import InputError


@dataclass(frozen=True)
class Batch:
    """Images B x C x H x W as the student takes them, their labels, and their places (`index`) in the subset.

    `share` is the weight of the batch's mean loss: summed over the parts of `split` and averaged over
    processes, the weighted losses give the mean over the global batch. It is 1 for a whole batch of one
    process.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    share: float = 1.0
    targets: Tensor | None = None  # B x classes, shares of the classes in mixed images
    for_teacher: Callable[[Tensor, Tensor], Tensor] | None = None  # images and index -> the teacher's images
    class_weights: Tensor | None = None  # in cross-entropy; None: all 1

    def split(self, parts: int) -> "list[Batch]":
        """At most `parts` parts of nearly equal size, each with two images or more (for batch norm)."""
        count = len(self.index)
        wanted = max(1, min(parts, count // 2))
        pieces = zip(
            *(each.tensor_split(wanted) for each in (self.images, self.labels, self.index)),
            [None] * wanted if self.targets is None else self.targets.tensor_split(wanted),
            strict=True,
        )
        return [
            replace(
                self,
                images=images,
                labels=labels,
                index=index,
                share=self.share * len(index) / count,
                targets=targets,
            )
            for images, labels, index, targets in pieces
        ]


class Batches:
    """The images of a train subset in batches. Each epoch has a new random order and new views.

    A view depends on (seed, row of the store, epoch), so an image has the same views in every subset. `input`
    is how the student takes its images, `teacher_input` how the teacher takes the same views.

    With `class_balance` sampler an image may come several times in an epoch. So that it does not look the
    same each time, its views are then numbered by batch instead of by epoch.

    `shard` = (rank, world) gives each process its slice of every global batch. The slices of a batch differ
    in size by at most one. Batch norm cannot train on one image, so a short last batch joins the batch before
    it if a process would get fewer than two images of it.
    """

    def __init__(
        self,
        images: np.ndarray,
        subset: Subset,
        *,
        batch_size: int,
        seed: int,
        mean: tuple[float, ...],
        augment: AugmentConfig | None,
        class_balance: ClassBalance = "none",
        input: Input,
        teacher_input: Input | None = None,
        device: torch.device | str,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """`mean`: the colour of what lies outside of an image, from 0 to 1 for each channel."""
        rank, world = shard
        assert 0 <= rank < world
        if batch_size < world or len(subset.rows) < world:
            raise InputError(
                f"{world} processes cannot share batches of {min(batch_size, len(subset.rows))} image(s). "
                "Raise the batch size (or the shots), or start fewer processes."
            )
        self.batch_size, self.seed, self.shard = batch_size, seed, shard
        self.input, self.teacher_input = input, teacher_input or input
        self.device = torch.device(device)
        fill = torch.tensor(mean, device=self.device)
        self.views = Views(images, subset.rows, augment, seed=seed, mean=fill, device=self.device)
        self.labels = torch.as_tensor(subset.labels, dtype=torch.int64).to(self.device)
        self.classes, self.subset, self.class_balance = len(subset.classes), subset, class_balance
        weighted = class_balance == "weights"
        self.class_weights = class_weights(self.labels, self.classes) if weighted else None

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        steps, last = divmod(len(self.labels), self.batch_size)
        return max(1, steps + (last >= 2 * self.shard[1]))

    def epoch(self, n: int) -> Iterator[Batch]:
        """The batches of epoch `n`: of each batch, the slice of this process."""
        rank, world = self.shard
        order = torch.from_numpy(
            epoch_order(self.subset.labels, seed=self.seed, epoch=n, class_balance=self.class_balance)
        )
        on_device = order.to(self.device)  # once an epoch, so that no step waits for the device
        for step in range(len(self)):
            end = (step + 1) * self.batch_size if step < len(self) - 1 else len(order)
            chosen, index = (
                torch.tensor_split(each[step * self.batch_size : end], world)[rank]
                for each in (order, on_device)
            )
            share = world * len(index) / (end - step * self.batch_size)
            number = n * len(self) + step if self.class_balance == "sampler" else n
            yield self._batch(Rows(chosen, index), number, share)

    def _batch(self, places: Rows, number: int, share: float) -> Batch:
        index = places.on_device
        return Batch(
            self.input.normalise_(self.views.pictures(places, number, self.input.size)),
            self.labels[index],
            index,
            share,
            self.views.targets(places, number, self.labels, self.classes),
            self._for_teacher(number),
            self.class_weights,
        )

    def _for_teacher(self, number: int) -> Callable[[Tensor, Tensor], Tensor] | None:
        """From the student's images to the teacher's: drawn again only if the sizes differ."""
        own, other = self.input, self.teacher_input
        if own == other:
            return None
        if own.size == other.size:
            return lambda images, index: other.renormalise(images, own)
        return lambda images, index: other.normalise_(
            self.views.pictures(Rows(index.cpu(), index), number, other.size)
        )
