"""What to train: a run, a teacher or a piece of knowledge, each with all its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.augment import AugmentConfig
from pipeline.data.protocol import ProtocolConfig
from pipeline.methods import MethodConfig
from pipeline.nets import NetConfig
from pipeline.nets.start import StartConfig
from pipeline.training.recipe import TrainConfig


@dataclass(frozen=True)
class Run:
    """A teacher, a student, a method and its settings, trained once for each seed."""

    name: str
    teacher: str  # a name of `teachers` or of `knowledge`
    student: NetConfig
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

    def with_settings(self, settings: Mapping[str, Any]) -> "Run":
        return replace(self, settings=settings)


@dataclass(frozen=True)
class TeacherRun:
    """A network to be fine-tuned on the whole training split."""

    name: str
    net: NetConfig
    start: StartConfig
    train: TrainConfig
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
