"""The protocol every distillation method follows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import softened_kl
from pipeline.inputs import InputError, Settings
from pipeline.taps import Step, Tapped

Terms = dict[str, Tensor]


class Weighted(NamedTuple):
    """A term of a loss, raw, and what it counts."""

    value: Tensor
    weight: float


Loss = dict[str, Weighted]  # the trainer sums weight * value and logs both


class MethodConfig(Settings):
    name: str
    ce_weight: float = Field(1.0, ge=0, description="labels")
    kd_weight: float = Field(0.0, ge=0, description="softened teacher logits, for every method alike")
    term_weight: float = Field(1.0, ge=0, description="the method's own terms")
    temperature: float = Field(4.0, gt=0, description="softens the logits of both networks")
    combine: dict[str, Any] = Field(default_factory=dict, description="a second method whose terms are added: {name: crd, ...}")


class StagesConfig(MethodConfig):
    """Of a method that matches stages."""

    student_stages: tuple[str, ...] = Field((), description="empty: all but the stem")
    teacher_stages: tuple[str, ...] = Field((), description="empty: all but the stem")


@dataclass(frozen=True)
class Phase:
    name: str  # key under runs.<run>.phases in params.yaml
    loss: Callable[[Step], Loss]
    trains: tuple[nn.Module, ...]  # exactly what the optimiser sees; all else is frozen
    of_teacher: tuple[str, ...] = ()  # if it reads the teacher alone, and can be learned once for many students: the settings it reads


Pairs = Sequence[tuple[str, str]]  # (of the student, of the teacher): stages, `pooled` or `logits`


class Method(nn.Module, ABC):
    """A method is its terms; the weights, the labels and plain KD are the base's.

    Adapters and dictionaries are built in `__init__` from the probe's shapes: as sub-modules they train, move and are saved by themselves.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs_image_gradients: ClassVar[bool] = False  # terms differentiate the views with respect to the images
    pairs: Pairs = ()  # what its terms match with what

    def __init__(self, cfg: MethodConfig, probe: Step, labels: Tensor) -> None:
        """`probe` is a small batch seen by both networks; `labels` are those of the whole training set, by index."""
        super().__init__()
        self.cfg = cfg
        self.notes: dict[str, Tensor] = {}  # scalars of this step to look at that are no terms: the trainer logs their means
        if cfg.kd_weight and probe.teacher.logits.shape[1] != probe.student.logits.shape[1]:
            raise InputError(
                f"method.kd_weight is {cfg.kd_weight}, but the teacher tells {probe.teacher.logits.shape[1]} classes apart and the student "
                f"{probe.student.logits.shape[1]}: their logits can't be matched. Set method.kd_weight to 0."
            )

    @abstractmethod
    def terms(self, step: Step) -> Terms:
        """The knowledge terms, unweighted scalars."""

    def loss(self, step: Step) -> Loss:
        cfg, loss = self.cfg, {}
        if self.needs_image_gradients:
            step.images.requires_grad_()  # before any view is read
        if cfg.ce_weight:
            loss["ce"] = Weighted(F.cross_entropy(step.student.logits, step.labels), cfg.ce_weight)
        if cfg.kd_weight:
            teacher = step.teacher.logits.detach()  # they carry a graph where a method asks for gradients of the images
            loss["kd"] = Weighted(softened_kl(step.student.logits, teacher, cfg.temperature), cfg.kd_weight)
        if cfg.term_weight:
            loss.update({name: Weighted(value, cfg.term_weight) for name, value in self.terms(step).items()})
        return loss

    def matched(self) -> Pairs:
        """What of the student meets what of the teacher, KD's logits included."""
        return [*self.pairs, *([("logits", "logits")] if self.cfg.kd_weight else [])]

    def take_notes(self) -> dict[str, Tensor]:
        notes, self.notes = self.notes, {}
        return notes

    def phases(self, student: Tapped) -> list[Phase]:
        return [Phase("distill", self.loss, (student.net, self))]

    def after_backward(self, step: Step, student: Tapped) -> None:
        """The single hook: gradients are there, the optimiser hasn't stepped yet."""


def stage_pairs(probe: Step, student: Sequence[str], teacher: Sequence[str], *, skip: Sequence[str] = ("stem",)) -> Pairs:
    """Which stage of the student meets which of the teacher: those named, else all but `skip`; the deepest where there are too many."""
    for name in student:
        probe.student.stage(name, "method.student_stages")
    for name in teacher:
        probe.teacher.stage(name, "method.teacher_stages")
    students = student or [name for name in probe.student.stages if name not in skip]
    teachers = teacher or [name for name in probe.teacher.stages if name not in skip]
    count = min(len(students), len(teachers))
    for field, named in (("method.student_stages", student), ("method.teacher_stages", teacher)):
        if len(named) > count:
            raise InputError(f"{field} names {len(named)} stages, but there are {count} in the other network to match. Name {count}.")
    if not count:
        raise InputError("A network shows no stage to match. Name the modules whose outputs are its stages under `taps` of the network.")
    return list(zip(students[-count:], teachers[-count:], strict=True))


def preactivation_pairs(probe: Step, student: Sequence[str], teacher: Sequence[str]) -> Pairs:
    """`stage_pairs` of stages that end in an activation, so that there is a map before it."""
    pairs = stage_pairs(probe, student, teacher)
    for whose, view, names in zip(("student", "teacher"), (probe.student, probe.teacher), zip(*pairs, strict=True), strict=True):
        for name in names:
            if name not in view.preactivations:
                raise InputError(
                    f"method.{whose}_stages: stage {name!r} of the {whose} ends in no activation module, so it has no map before it. "
                    f"Choose stages among: {', '.join(view.preactivations) or '(none)'}; or let `taps` of the network name the activation, "
                    "such as layer1.2.relu."
                )
    return pairs
