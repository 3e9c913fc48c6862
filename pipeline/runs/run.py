"""What to train: a run, a teacher or a piece of knowledge, each with all its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, field_validator, model_validator

from pipeline.data.augment import AugmentConfig
from pipeline.data.protocol import ProtocolConfig
from pipeline.methods import MethodConfig
from pipeline.nets import NetConfig
from pipeline.nets.onnx_file import PREFIX
from pipeline.nets.start import StartConfig
from pipeline.training.recipe import TeacherTrainConfig, TrainConfig


class StudentConfig(NetConfig):
    start: StartConfig = StartConfig()

    @field_validator("net")
    @classmethod
    def _can_learn(cls, net: str) -> str:
        if net.startswith(PREFIX):
            raise ValueError("an ONNX file only answers, so it can be a teacher, but not a student")
        return net


class TeacherConfig(NetConfig):
    start: StartConfig = StartConfig()
    classes: tuple[str, ...] = Field(
        (), description="names of its outputs in their order; those that the data lacks are cut off"
    )
    train: TeacherTrainConfig = TeacherTrainConfig()
    min_accuracy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="on validation; a worse teacher stops the graph. By default: surely above chance",
    )

    @model_validator(mode="after")
    def _has_weights_to_keep(self) -> "TeacherConfig":
        keeps = (("train.epochs 0", not self.train.is_trained), ("classes", bool(self.classes)))
        for setting, is_given in keeps:
            if is_given and self.start.source == "random":
                raise ValueError(
                    f"{setting} keeps the classifier that the weights have, but start.source is random. Name "
                    "the weights under `start`"
                )
        if self.net.startswith(PREFIX) and self.train.is_trained:
            raise ValueError("an ONNX file only answers, so it cannot be trained. Write train: {epochs: 0}")
        return self


@dataclass(frozen=True)
class Run:
    """A teacher, a student, a method and its settings, trained once for each seed."""

    name: str
    teacher: str  # a name of `teachers` or of `knowledge`
    student: StudentConfig
    student_name: str
    method: MethodConfig
    partner: MethodConfig | None  # its terms are added to those of the method
    protocol: ProtocolConfig
    augment: AugmentConfig
    train: TrainConfig
    phases: Mapping[str, TrainConfig]  # for the phases with settings of their own
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]  # all of this as plain JSON, with defaults written out, for the record

    def training(self, phase: str) -> TrainConfig:
        """The settings of one phase's training."""
        return self.phases.get(phase, self.train)

    @property
    def is_deterministic(self) -> bool:
        """Whether a phase asks for it."""
        return any(each.deterministic for each in (self.train, *self.phases.values()))

    def with_settings(self, settings: Mapping[str, Any]) -> "Run":
        return replace(self, settings=settings)


@dataclass(frozen=True)
class TeacherRun:
    """A network to be fine-tuned on the whole training split, or taken as it is."""

    name: str
    cfg: TeacherConfig
    protocol: ProtocolConfig  # of which only the classes matter: a teacher learns from all images
    augment: AugmentConfig
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class KnowledgeRun:
    """What a method learns from a teacher alone, once for many students."""

    name: str
    teacher: str
    method: MethodConfig
    protocol: ProtocolConfig
    augment: AugmentConfig
    train: TrainConfig
    phases: Mapping[str, TrainConfig]
    seed: int
    settings: Mapping[str, Any]

    def training(self, phase: str) -> TrainConfig:
        return self.phases.get(phase, self.train)

    @property
    def is_deterministic(self) -> bool:
        """Whether a phase asks for it."""
        return any(each.deterministic for each in (self.train, *self.phases.values()))
