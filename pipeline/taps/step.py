"""One batch, with the answers of student and teacher to it."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.functional import weighted_cross_entropy
from pipeline.taps import processes
from pipeline.taps.answer import Answer
from pipeline.taps.tapped import Tapped

Live = Callable[[], Answer]  # asks the network


@dataclass(frozen=True)
class Labelled:
    """Which images of a batch have labels."""

    places: Tensor
    share: float  # of the images of the whole batch, of which this may be a part


@dataclass
class Step:
    """One batch, with the answers of student and teacher. A network runs only when its answer is read."""

    images: Tensor  # as the student takes them
    labels: Tensor  # of a mixed image: the class of its larger part
    index: Tensor  # positions in the train subset
    student_net: Tapped | None = None
    teacher_net: Tapped | None = None
    epoch: int = 0
    progress: float = 0.0  # share of the phase that is done, from 0 to 1
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    # the student's images and their `index` -> the same views as the teacher takes them; None: no difference
    for_teacher: Callable[[Tensor, Tensor], Tensor] | None = None
    targets: Tensor | None = None  # B x classes, the share of each class in mixed images; None: the labels
    label_smoothing: float = 0.0
    labelled: Labelled | None = None  # None: all images have labels
    class_weights: Tensor | None = None  # of cross-entropy; None: all 1
    starts_epoch: bool = False  # whether it is the first step of the epoch, or the first part of it
    stored: Callable[[Live], Answer] | None = None  # stands in for the teacher; it may ask the network, too
    counts: tuple[int, ...] = ()  # of the images in each process; empty: there is one process
    random: torch.Generator | None = None  # the same in all processes; None: torch's own

    @classmethod
    def of(
        cls, *, student: Answer, teacher: Answer, labels: Tensor, index: Tensor, images: Tensor | None = None
    ) -> "Step":
        """A step whose answers are given: no network runs."""
        step = cls(torch.empty(0) if images is None else images, labels, index)
        step.__dict__.update(student=student, teacher=teacher)  # fills the cached properties
        return step

    @cached_property
    def student(self) -> Answer:
        """The student's answer."""
        assert self.student_net is not None, "this step has no student"
        with self.autocast():
            return self.student_net(self.images)

    @cached_property
    def teacher(self) -> Answer:
        """The teacher's answer, without gradients unless the images require them."""
        assert self.teacher_net is not None, "this step has no teacher"
        if self.stored is None:
            return _ask(self.teacher_net, self.images, lambda: self.teacher_images, self.autocast)
        # a reference to the step itself would keep its memory until Python looks for circles
        images = partial(_for_teacher, self.images, self.index, self.for_teacher)
        return self.stored(partial(_ask, self.teacher_net, self.images, images, self.autocast))

    @cached_property
    def teacher_images(self) -> Tensor:
        """The same views as the teacher takes them."""
        return _for_teacher(self.images, self.index, self.for_teacher)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """How many images each process has in this step."""
        return self.counts or (len(self.labels),)

    @property
    def scale(self) -> float:
        """Factor of the gradient of a value that all processes compute alike.

        The loop takes the mean of their gradients, but each has the gradient for its own images alone.
        """
        return sum(self.rows) / self.rows[processes.rank()] if len(self.rows) > 1 else 1.0

    def of_all(self, rows: Tensor) -> Tensor:
        """The rows of the images of all processes, for what compares images with one another.

        Use it only for values that are then the same in all processes: their gradients rely on it.
        """
        return processes.rows_of_all(rows, self.rows, self.scale) if len(self.rows) > 1 else rows

    def noise(
        self, columns: int, fill: Callable[..., Tensor] = Tensor.uniform_, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Random numbers, B x columns, by default from 0 to 1.

        They are drawn for the images of all processes, so that each image gets what it gets in one process.
        """
        numbers = torch.empty(sum(self.rows), columns, dtype=dtype, device=self.labels.device)
        fill(numbers, generator=self.random)
        return processes.own_rows(numbers, self.rows) if len(self.rows) > 1 else numbers

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """With the labels, smoothed, mixed and weighted as asked; mean over the images that have labels."""
        if self.labelled is not None:
            places, wanted = self.labelled.places, len(logits) * self.labelled.share
            return self.labelled_part.cross_entropy(logits[places]) * (len(places) / wanted)
        if self.class_weights is not None:
            shares = self.targets
            if shares is None:
                shares = F.one_hot(self.labels, len(self.class_weights)).float()
            return weighted_cross_entropy(logits, shares, self.class_weights, self.label_smoothing)
        targets = self.labels if self.targets is None else self.targets
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    @property
    def labelled_part(self) -> "Step":
        """The images that have labels, and what both networks answered to them."""
        return self if self.labelled is None else self._labelled_part  # never kept in itself, as above

    @cached_property
    def _labelled_part(self) -> "Step":
        assert self.labelled is not None
        return _LabelledPart.of_step(self, self.labelled.places)


def _ask(
    teacher: Tapped,
    images: Tensor,
    teacher_images: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager[object]],
) -> Answer:
    assert not teacher.net.training, "the teacher must be in eval mode"
    # a method that needs gradients of the images (jacobian) sets requires_grad before it reads an answer
    with torch.set_grad_enabled(images.requires_grad), autocast():
        return teacher(teacher_images())


def _for_teacher(
    images: Tensor, index: Tensor, for_teacher: Callable[[Tensor, Tensor], Tensor] | None
) -> Tensor:
    return images if for_teacher is None else for_teacher(images, index)


class _LabelledPart(Step):
    """Some images of another step, with that step's answers. An answer is read only if a term asks for it."""

    places: Tensor
    _whole: "weakref.ref[Step]"  # which keeps this part

    @classmethod
    def of_step(cls, whole: Step, places: Tensor) -> "_LabelledPart":
        part = cls(
            whole.images[places],
            whole.labels[places],
            whole.index[places],
            epoch=whole.epoch,
            progress=whole.progress,
            starts_epoch=whole.starts_epoch,
            autocast=whole.autocast,
            targets=None if whole.targets is None else whole.targets[places],
            label_smoothing=whole.label_smoothing,
            class_weights=whole.class_weights,
            random=whole.random,
        )
        part._whole, part.places = weakref.ref(whole), places
        return part

    @property
    def whole(self) -> Step:
        whole = self._whole()
        assert whole is not None, "the step of this part is over"
        return whole

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Only each process itself knows how many of its images have labels."""
        own = len(self.labels)
        return tuple(processes.of_each(own)) if len(self.whole.rows) > 1 else (own,)

    @property
    def scale(self) -> float:
        return self.whole.scale

    @cached_property
    def student(self) -> Answer:
        return self.whole.student.of(self.places)

    @cached_property
    def teacher(self) -> Answer:
        return self.whole.teacher.of(self.places)
