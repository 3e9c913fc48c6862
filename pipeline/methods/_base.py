"""The protocol that every distillation method follows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.functional import softened_kl, standardised
from pipeline.settings import InputError, Settings
from pipeline.taps import processes
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

Terms = dict[str, Tensor]


class Weighted(NamedTuple):
    """A term of a loss, not yet weighted, and its weight."""

    value: Tensor
    weight: float


Loss = dict[str, Weighted]  # the training loop sums weight * value and logs both; the names are in the curves


class MethodConfig(Settings):
    """Settings of every method."""

    RENAMED: ClassVar[dict[str, str]] = {
        "student_stages": "student_maps",
        "teacher_stages": "teacher_maps",
        "student_stage": "student_map",
        "teacher_stage": "teacher_map",
    }
    TERMS_OF_LOGITS: ClassVar[bool] = False  # True if `standardise` acts on the method's own terms too

    name: str
    ce_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy on labels")
    kd_weight: float = Field(0.0, ge=0, description="weight of plain KD on the teacher's logits")
    term_weight: float = Field(1.0, ge=0, description="weight of the method's own terms")
    temperature: float = Field(
        4.0, gt=0, le=1000, description="tau of KD, which divides the logits of both networks"
    )
    standardise: bool = Field(
        False,
        description="give the logits of each image mean 0 and deviation 1 first, in KD and terms on logits",
    )
    combine: dict[str, Any] = Field(
        default_factory=dict,
        description="a second method with its settings, such as {name: crd}; its terms are added",
    )

    @model_validator(mode="after")
    def _standardises_something(self) -> "MethodConfig":
        if self.standardise and not self.kd_weight and not (self.TERMS_OF_LOGITS and self.term_weight):
            raise ValueError(
                "standardise is true, but kd_weight is 0, so no logits are matched. Raise kd_weight, or "
                "leave standardise out"
            )
        return self


class MapsConfig(MethodConfig):
    """Settings of a method that matches maps."""

    student_maps: tuple[str, ...] = Field(
        (), description="names of the student's maps; empty: all but the stem"
    )
    teacher_maps: tuple[str, ...] = Field(
        (), description="names of the teacher's maps; empty: all but the stem"
    )


@dataclass(frozen=True)
class Phase:
    """One training of a method."""

    name: str  # key under runs.<run>.phases in params.yaml
    # a method of the Method or of a module in it: copies of both make a trial step (runs/parts_read.py)
    loss: Callable[[Step], Loss]
    trains: tuple[nn.Module, ...]  # exactly what the optimizer moves; everything else is frozen
    needs_labels: bool = False  # True if images without labels would teach it nothing
    # Only for a phase that never reads the student, and so can be trained once for many students: the names
    # of the settings that it reads.
    of_teacher: tuple[str, ...] = ()
    # Whether the student's embedding after it is measured by the nearest class mean on validation images, or
    # its weights are chosen by that, too.
    embedding: Literal["", "measured", "chosen"] = ""
    # modules whose learning rate is this multiple of the phase's: a second optimizer, with the same schedule
    rates: tuple[tuple[nn.Module, float], ...] = ()


Pairs = Sequence[tuple[str, str]]  # (student's, teacher's): each the name of a map, `pooled` or `logits`
C = TypeVar("C", bound=MethodConfig)
M = TypeVar("M", bound=MapsConfig)
L = TypeVar("L", bound="LogitConfig")


class Method(nn.Module, ABC, Generic[C]):
    """A method gives its terms. The base adds the terms of labels and plain KD, and holds all weights:

    `ce_weight * CE + kd_weight * tau^2 * KL(teacher || student) + term_weight * sum of the terms`

    `class Foo(Method[Config])` names the settings of the method. Adapters and dictionaries are built in
    `__init__` from the shapes of the probe. As sub-modules they are trained, moved and saved with the method.

    What a method may keep between calls:
    - from step to step, only what `state_dict()` saves (parameters and buffers), and what can be read from
      it again, where reading it each time would make the device wait;
    - within a step, values that `after_backward` uses and drops.

    All of it must be the same in all processes that train together: see `synchronise`.

    Everything else would be lost when a training stops and goes on in a new process.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs_image_gradients: bool = False  # True if terms differentiate the answers with respect to the images
    terms_of: Literal["none", "labelled", "all"] = (
        "all"  # the images that `terms` learns from; none: no terms
    )
    pairs: Pairs = ()  # what the terms match

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, MethodConfig):
                    cls.Config = argument

    def __init__(self, cfg: C, probe: Step, labels: Tensor) -> None:
        """`probe` is a small batch with both answers; `labels` are those of all labelled images."""
        super().__init__()
        self.cfg = cfg
        self.notes: dict[str, Tensor] = {}  # scalars of this step that are not terms; their means are logged
        if cfg.kd_weight:
            check_classes(probe, "kd_weight", cfg.kd_weight)

    @abstractmethod
    def terms(self, step: Step) -> Terms:
        """The method's own terms: scalars, not yet weighted."""

    def loss(self, step: Step) -> Loss:
        """Labels, plain KD and the method's own terms; what has weight 0 is not computed."""
        cfg, loss = self.cfg, {}
        if self.needs_image_gradients:
            step.images.requires_grad_()  # before an answer is read
        if cfg.ce_weight:
            loss["ce"] = Weighted(step.cross_entropy(step.student.logits), cfg.ce_weight)
        if cfg.kd_weight:
            loss["kd"] = Weighted(softened_kl(*self.logits(step), cfg.temperature), cfg.kd_weight)
        if cfg.term_weight:
            terms = self.terms(step if self.terms_of == "all" else step.labelled_part)
            loss.update({name: Weighted(value, cfg.term_weight) for name, value in terms.items()})
        return loss

    def logits(self, step: Step) -> tuple[Tensor, Tensor]:
        """Those of student and teacher that are matched, B x classes: as they are, or standardised."""
        teacher = step.teacher.logits.detach()  # they have a graph if a method needs image gradients
        student = step.student.logits
        return (standardised(student), standardised(teacher)) if self.cfg.standardise else (student, teacher)

    @property
    def needs_labels(self) -> bool:
        """Whether images without labels teach `loss` nothing."""
        return not self.cfg.kd_weight and not (self.cfg.term_weight and self.terms_of == "all")

    def matched(self) -> Pairs:
        """All pairs, including the logits of KD."""
        return [*self.pairs, *([("logits", "logits")] if self.cfg.kd_weight else [])]

    def take_notes(self) -> dict[str, Tensor]:
        """Return the notes of this step and forget them."""
        notes, self.notes = self.notes, {}
        return notes

    def phases(self, student: Tapped) -> list[Phase]:
        """The phases in the order in which they are trained. The last one is called `distill`."""
        return [self.last_phase(student.net, self)]

    def last_phase(self, *trains: nn.Module) -> Phase:
        """Phase `distill`, which trains `loss`."""
        return Phase("distill", self.loss, trains, self.needs_labels)

    def image_weights(self, step: Step) -> Tensor | None:
        """How much the last phase lets each image count, for the record; None if all count the same."""
        return None

    def synchronise(self) -> None:
        """Make what is kept beside trained weights the same in all processes, at each point of the curves.

        What a step computes for all processes (`Step.of_all`, `Step.noise`, `processes.summed`) is the same
        already. What is left are batch norms, which have seen other images: they get the mean.
        """
        processes.average(statistics(self))

    def after_backward(self, step: Step, student: Tapped) -> None:
        """The one hook in the training loop: the gradients are ready, the optimizer has not stepped yet."""


def statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch norms."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    both = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in both if tensor is not None]


class LogitConfig(MethodConfig):
    """Settings of a method that matches logits."""

    TERMS_OF_LOGITS: ClassVar[bool] = True


class LogitMethod(Method[L]):
    """A method whose terms read logits alone, so that both networks must have the same classes."""

    pairs: Pairs = (("logits", "logits"),)

    def __init__(self, cfg: L, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        if cfg.term_weight:
            check_classes(probe, "term_weight", cfg.term_weight)


def check_classes(probe: Step, field: str, weight: float) -> None:
    """Refuse a weight of what matches logits if the networks have different classes."""
    classes, teacher_classes = probe.student.logits.shape[1], probe.teacher.logits.shape[1]
    if teacher_classes != classes:
        raise InputError(
            f"method.{field} is {weight}, but the teacher has {teacher_classes} classes and the student "
            f"{classes}, so their logits cannot be matched. Set method.{field} to 0."
        )


WarmUp = Annotated[
    float,
    Field(ge=0, le=1, description="share of the phase in which the terms rise to their full weight"),
]


def warm_up(progress: float, share: float) -> float:
    """A factor that rises from 1/20 to 1 over the first `share` of a phase (0: 1 from the start).

    At the start of each of 20 epochs it is 1/20, 2/20 and so on, as in the papers.
    """
    return min(1 / 20 + progress / share, 1.0) if share else 1.0


class MapMethod(Method[M]):
    """A method that matches maps one to one: the pairs are those of `map_pairs`."""

    def __init__(self, cfg: M, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = map_pairs(probe, cfg.student_maps, cfg.teacher_maps)


def map_pairs(
    probe: Step, student: Sequence[str], teacher: Sequence[str], *, with_stem: bool = False
) -> list[tuple[str, str]]:
    """Pairs of maps to match, shallow to deep: those named, otherwise all maps but the stem.

    If one network has more maps than the other, its deepest ones are matched.
    """
    students = _names(probe.student, student, "student", with_stem=with_stem)
    teachers = _names(probe.teacher, teacher, "teacher", with_stem=with_stem)
    count = min(len(students), len(teachers))
    for field, named in (("method.student_maps", student), ("method.teacher_maps", teacher)):
        if len(named) > count:
            raise InputError(
                f"{field} names {len(named)} maps, but the other network has only {count} to match. Name "
                f"{count} or fewer."
            )
    return list(zip(students[-count:], teachers[-count:], strict=True))


def _names(answer: Answer, named: Sequence[str], network: str, *, with_stem: bool) -> Sequence[str]:
    for name in named:
        answer.named_map(name, f"method.{network}_maps")
    names = named or (list(answer.maps) if with_stem else answer.body)
    if not names:
        raise InputError(
            f"The {network} has no map to match. Under `taps` of that network, name the modules whose "
            "outputs are maps."
        )
    return names


def preactivation_pairs(probe: Step, student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """`map_pairs`, where each map must end in an activation, so that there is a map before the activation."""
    pairs = map_pairs(probe, student, teacher)
    answers = {"student": probe.student, "teacher": probe.teacher}
    for (network, answer), names in zip(answers.items(), zip(*pairs, strict=True), strict=True):
        for name in names:
            if name not in answer.preactivations:
                raise InputError(
                    f"method.{network}_maps: map {name!r} of the {network} does not end in an activation "
                    "module, so there is no map before the activation. Choose among: "
                    f"{', '.join(answer.preactivations) or '(none)'}; or name the activation, such as "
                    "layer1.2.relu, under `taps` of the network."
                )
    return pairs
