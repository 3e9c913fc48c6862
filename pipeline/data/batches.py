"""Batches of a train subset: the same for the same seed and epoch, gathered and augmented without workers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import AugmentConfig
from pipeline.data.images import Images
from pipeline.data.mixing import Mixture
from pipeline.data.order import ClassBalance, epoch_order
from pipeline.data.protocol import Subset
from pipeline.data.views import Rows, Views
from pipeline.functional import Input, class_weights
from pipeline.settings import InputError
from pipeline.taps.answer import Answer
from pipeline.taps.step import Labelled, Live


@dataclass(frozen=True)
class Batch:
    """Images B x C x H x W as the student takes them, their labels, and their places (`index`) in the subset.

    `share` is the weight of the batch's mean loss: summed over the parts of `split` and averaged over
    processes, the weighted losses give the mean over the global batch. It is 1 for a whole batch of one
    process.
    """

    images: Tensor
    labels: Tensor  # -1 for an image without a label
    index: Tensor
    share: float = 1.0
    targets: Tensor | None = None  # B x classes, shares of the classes in mixed images
    for_teacher: Callable[[Tensor, Tensor], Tensor] | None = None  # images and index -> the teacher's images
    is_labelled: Tensor | None = None  # B, on the host; None: all images have labels
    labelled_share: float = 1.0  # of the whole batch

    @property
    def labelled(self) -> Labelled | None:
        """Which images have labels; None if all have."""
        if self.is_labelled is None:
            return None
        places = self.is_labelled.nonzero()[:, 0].to(self.labels.device)
        return Labelled(places, self.labelled_share)

    class_weights: Tensor | None = None  # in cross-entropy; None: all 1
    places: Tensor | None = None  # `index` on the host
    answers: Callable[[Tensor, Live], Answer] | None = None  # places -> the teacher's stored answer
    counts: tuple[int, ...] = ()  # of the images in each process; empty: there is one process

    @property
    def stored(self) -> Callable[[Live], Answer] | None:
        """Stands in for the teacher; None if there is nothing stored."""
        if self.answers is None:
            return None
        assert self.places is not None
        return partial(self.answers, self.places)

    def split(self, parts: int) -> "list[Batch]":
        """At most `parts` parts of nearly equal size, each with two images or more (for batch norm)."""
        count = len(self.index)
        wanted = max(1, min(parts, min(self.counts, default=count) // 2))  # the same in all processes
        maybe = (self.targets, self.is_labelled, self.places)
        pieces = zip(
            *(each.tensor_split(wanted) for each in (self.images, self.labels, self.index)),
            *([None] * wanted if each is None else each.tensor_split(wanted) for each in maybe),
            strict=True,
        )
        counts = zip(*(sizes(each, wanted) for each in self.counts), strict=True)
        return [
            replace(
                self,
                images=images,
                labels=labels,
                index=index,
                share=self.share * len(index) / count,
                targets=targets,
                is_labelled=is_labelled,
                places=places,
                counts=next(counts, ()),
            )
            for images, labels, index, targets, is_labelled, places in pieces
        ]


def sizes(count: int, parts: int) -> list[int]:
    """How many images each part gets, as in `tensor_split`."""
    return [count // parts + (n < count % parts) for n in range(parts)]


@dataclass(frozen=True)
class _Slice:
    """What one process sees of a batch."""

    places: Rows
    number: int  # of the views
    share: float
    counts: tuple[int, ...]


class Batches:
    """The images of a train subset in batches. Each epoch has a new random order and new views.

    A view depends on (seed, row of the store, epoch), so an image has the same views in every subset. With
    `augment.views` K it depends on (`augment.seed`, row, epoch mod K) instead. Then the seed decides only
    about the order, and `answers` may be set to what a teacher answered to these views.

    `input` is how the student takes its images, `teacher_input` how the teacher takes the same views. Images
    without labels have the share `unlabelled_share` of each batch (see Mixture); at 0 they are not seen.

    With images without labels, and with `class_balance` sampler, an image may come several times in an epoch.
    So that it does not look the same each time, its views are then numbered by batch instead of by epoch.

    `shard` = (rank, world) gives each process its slice of every global batch. The slices of a batch differ
    in size by at most one. Batch norm cannot train on one image, so a short last batch joins the batch before
    it if a process would get fewer than two images of it.
    """

    def __init__(
        self,
        images: Images,
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
        unlabelled_share: float = 0.0,
        parts: int = 1,
    ) -> None:
        """`mean`: the colour of what lies outside of an image, from 0 to 1 for each channel. `parts`: into
        how many parts each process will split a batch."""
        rank, world = shard
        assert 0 <= rank < world
        if world > 1 and min(batch_size, len(subset.rows)) < 2 * world:
            raise InputError(
                f"train.batch_size is {batch_size}, and there are {len(subset.rows)} images to learn from. "
                f"But {world} processes share each batch, and each needs two images of it or more, for batch "
                f"norm. Make both {2 * world} or more (protocol says how many images there are), or start "
                "fewer processes (launcher)."
            )
        self.batch_size, self.seed, self.shard = batch_size, seed, shard
        self.input, self.teacher_input = input, teacher_input or input
        self.device = torch.device(device)
        count, others = len(subset.rows), subset.unlabelled if unlabelled_share else subset.unlabelled[:0]
        self.mixture: Mixture | None = None
        if len(others):
            self.mixture = Mixture.of(count, len(others), batch_size, unlabelled_share)
            self.mixture.check(world * parts)
        rows = np.concatenate([subset.rows, others])
        fill = torch.tensor(mean, device=self.device)
        self.fixed_views = augment.views if augment else 0
        seen = augment.seed if augment and self.fixed_views else seed
        self.views = Views(images, rows, augment, seed=seen, mean=fill, device=self.device, labelled=count)
        self.answers: Callable[[int, Tensor, Live], Answer] | None = None  # number of the view, places
        labels = np.concatenate([subset.labels, np.full(len(others), -1)])
        self.labels = torch.as_tensor(labels, dtype=torch.int64).to(self.device)
        self.classes, self.labelled, self.unlabelled = len(subset.classes), count, len(others)
        self.subset, self.class_balance = subset, class_balance
        weighted = class_balance == "weights"
        self.class_weights = class_weights(self.labels[:count], self.classes) if weighted else None

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        if self.mixture is not None:
            return len(self.mixture)
        steps, last = divmod(len(self.labels), self.batch_size)
        return max(1, steps + (last >= 2 * self.shard[1]))

    @property
    def images_per_epoch(self) -> int:
        """How many images an epoch shows, over all processes; an image that comes twice counts twice."""
        return len(self.labels) if self.mixture is None else len(self) * self.batch_size

    def epoch(self, n: int, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch `n` from the batch `first` on: of each batch, the slice of this process."""
        for this, later in pairwise(chain(self._slices(n, first), [None])):
            assert this is not None
            self.views.expect(*((each.places, each.number) for each in (this, later) if each))
            yield self._batch(this)

    def _slices(self, n: int, first: int) -> Iterator[_Slice]:
        rank, world = self.shard
        order = torch.from_numpy(self._order(n))
        on_device = order.to(self.device)  # once an epoch, so that no step waits for the device
        for step in range(first, len(self)):
            end = (step + 1) * self.batch_size if step < len(self) - 1 else len(order)
            chosen, index = (
                torch.tensor_split(each[step * self.batch_size : end], world)[rank]
                for each in (order, on_device)
            )
            total = end - step * self.batch_size
            share = world * len(index) / total
            number = n * len(self) + step if self.repeats else n
            counts = tuple(sizes(total, world)) if world > 1 else ()
            yield _Slice(Rows(chosen, index), number % (self.fixed_views or number + 1), share, counts)

    def numbers(self, steps: int) -> int:
        """How many different views of an image so many steps show, at most."""
        numbers = steps if self.repeats else -(-steps // len(self))
        return min(self.fixed_views or numbers, numbers)

    def teacher_images(self, places: Tensor, number: int) -> Tensor:
        """View `number` of the images at `places` (on the host), as the teacher takes it."""
        size = self.teacher_input.size
        pictures = self.views.pictures(Rows(places, places.to(self.device)), number, size)
        return self.teacher_input.normalise_(pictures)

    @property
    def repeats(self) -> bool:
        """Whether an image may come several times in an epoch."""
        return self.mixture is not None or self.class_balance == "sampler"

    def _order(self, n: int) -> np.ndarray:
        """The places of the images of epoch `n`, batch after batch."""
        labels, balance = self.subset.labels, self.class_balance
        if self.mixture is not None:
            return self.mixture.order(labels, seed=self.seed, epoch=n, class_balance=balance)
        return epoch_order(labels, seed=self.seed, epoch=n, class_balance=balance)

    def _batch(self, part: _Slice) -> Batch:
        places, number, index = part.places, part.number, part.places.on_device
        return Batch(
            self.input.normalise_(self.views.pictures(places, number, self.input.size)),
            self.labels[index],
            index,
            part.share,
            self.views.targets(places, number, self.labels, self.classes),
            self._for_teacher(number),
            None if self.mixture is None else places.on_host < self.labelled,
            1.0 if self.mixture is None else self.mixture.share,
            self.class_weights,
            places.on_host,
            None if self.answers is None else partial(self.answers, number),
            part.counts,
        )

    def _for_teacher(self, number: int) -> Callable[[Tensor, Tensor], Tensor] | None:
        """From the student's images to the teacher's: drawn again only if the sizes differ."""
        own, other = self.input, self.teacher_input
        if own == other:
            return None
        if own.size == other.size:
            return lambda images, index: other.renormalise(images, own)
        return lambda images, index: self.teacher_images(index.cpu(), number)
