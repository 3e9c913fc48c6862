"""params.yaml, checked as a whole: every room's own Config put together."""

import re
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from pipeline import methods, nets
from pipeline.benchmark import BenchmarkConfig
from pipeline.data.augment import AugmentConfig
from pipeline.data.protocol import ProtocolConfig
from pipeline.data.sources import DataConfig
from pipeline.export.bundle import ExportConfig
from pipeline.inputs import InputError, Settings, unknown
from pipeline.methods.base import MethodConfig
from pipeline.nets import NetConfig, torchvision_zoo
from pipeline.nets.start import StartConfig
from pipeline.train import TrainConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # names become file names, stage names and words of a command


class TeacherConfig(NetConfig):
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()


class RunConfig(Settings):
    teacher: str
    student: str
    method: dict[str, Any]
    protocol: dict[str, Any] = Field(default_factory=dict, description="what differs from the common `protocol`")
    phases: dict[str, dict[str, Any]] = Field(default_factory=dict, description="what a phase does otherwise than `train`")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be different from one another and not negative")
        return seeds


class KnowledgeConfig(Settings):
    """What is learned of a teacher before there is a student: those phases of a method that read the teacher alone."""

    teacher: str
    method: dict[str, Any]
    phases: dict[str, dict[str, Any]] = Field(default_factory=dict, description="what a phase does otherwise than `train`")
    seed: int = Field(0, ge=0)


class AnalysisConfig(Settings):
    """What is looked into, of a run, beyond its accuracy."""

    images: int = Field(6, ge=0, le=40, description="of the picture that shows where the networks look; 0: none")
    transfer: dict[str, Any] = Field(default_factory=dict, description="other images, set as under `data`, to carry the students over to")


class Params(Settings):
    """Every section must be there, since dvc.yaml names it."""

    launcher: str
    data: DataConfig
    augment: AugmentConfig
    protocol: ProtocolConfig
    train: TrainConfig
    teachers: dict[str, TeacherConfig]
    knowledge: dict[str, KnowledgeConfig]
    students: dict[str, NetConfig]
    runs: dict[str, RunConfig]
    analysis: dict[str, AnalysisConfig] = Field(default_factory=dict, description="by run")
    export: ExportConfig
    benchmark: BenchmarkConfig

    def teacher(self, name: str) -> TeacherConfig:
        if name not in self.teachers:
            raise unknown("teachers", name, self.teachers)
        return self.teachers[name]

    def run(self, name: str) -> RunConfig:
        if name not in self.runs:
            raise unknown("runs", name, self.runs)
        return self.runs[name]

    def taught_by(self, run: str) -> TeacherConfig:
        name = self.run(run).teacher
        return self.teacher(self.knowledge[name].teacher if name in self.knowledge else name)

    def method(self, run: str) -> MethodConfig:
        """The run's; what its teacher's knowledge was learned with need not be said again."""
        given, known = self.run(run).method, self.knowledge.get(self.run(run).teacher)
        if known and known.method.get("name") == given.get("name"):
            given = known.method | given
        return _method(given, f"runs.{run}.method")

    def partner(self, run: str) -> MethodConfig | None:
        """The method combined with the run's: terms only, since labels and KD are weighted by the run's own."""
        cfg = self.method(run)
        where = f"runs.{run}.method.combine"
        if not cfg.combine:
            return None
        for key in ("ce_weight", "kd_weight", "combine"):
            if key in cfg.combine:
                raise InputError(f"params.yaml: {where}.{key}: a partner only adds its terms. Set {key} of runs.{run}.method instead.")
        partner = _method(cfg.combine | {"ce_weight": 0.0, "kd_weight": 0.0}, where)
        if partner.name == cfg.name:
            raise InputError(f"params.yaml: {where}.name: {cfg.name} can't be combined with itself. Name another method.")
        return partner

    def run_protocol(self, run: str) -> ProtocolConfig:
        for key in ("class_overlap", "class_seed"):
            if key in self.run(run).protocol:
                raise InputError(f"params.yaml: runs.{run}.protocol.{key}: runs share their teachers, so it is set once, in `protocol`.")
        return _check(ProtocolConfig, self.protocol.model_dump() | self.run(run).protocol, f"runs.{run}.protocol")

    def phase(self, run: str, phase: str) -> TrainConfig:
        """`train`, with what `runs.<run>.phases.<phase>` says otherwise."""
        return _check(TrainConfig, self.train.model_dump() | self.run(run).phases.get(phase, {}), f"runs.{run}.phases.{phase}")

    def transfer(self, run: str) -> DataConfig | None:
        """Other images, decoded as the run's own are."""
        given, where = self.analysis[run].transfer, f"analysis.{run}.transfer"
        for key in ("size", "channels"):
            if key in given:
                raise InputError(f"params.yaml: {where}.{key}: other images are decoded as those of `data`. Leave it out.")
        return _check(DataConfig, {"size": self.data.size, "channels": self.data.channels} | given, where) if given else None

    def knowledge_method(self, name: str) -> MethodConfig:
        return _method(self.knowledge[name].method, f"knowledge.{name}.method")

    def knowledge_phase(self, name: str, phase: str) -> TrainConfig:
        return _check(TrainConfig, self.train.model_dump() | self.knowledge[name].phases.get(phase, {}), f"knowledge.{name}.phases.{phase}")

    def knowledge_told(self, name: str) -> dict[str, Any]:
        method = self.knowledge_method(name).model_dump(mode="json")
        return {
            "knowledge": self.knowledge[name].model_dump(mode="json") | {"method": method},
            "train": self.train.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"),
            "augment": self.augment.model_dump(mode="json"),
        }

    def told(self, run: str) -> dict[str, Any]:
        """Everything a run is trained with, defaults written out, as plain JSON."""
        cfg, partner = self.run(run), self.partner(run)
        method = self.method(run).model_dump(mode="json") | {"combine": partner.model_dump(mode="json") if partner else {}}
        known = self.knowledge.get(cfg.teacher)
        return {
            "run": cfg.model_dump(mode="json") | {"method": method, "teacher": known.teacher if known else cfg.teacher},
            "knowledge": {cfg.teacher: known.model_dump(mode="json")} if known else {},
            "phases": {phase: self.phase(run, phase).model_dump(mode="json") for phase in cfg.phases},
            "train": self.train.model_dump(mode="json"),
            "student": self.students[cfg.student].model_dump(mode="json"),
            "protocol": self.run_protocol(run).model_dump(mode="json"),
            "augment": self.augment.model_dump(mode="json"),
        }


def _method(given: dict[str, Any], where: str) -> MethodConfig:
    if not isinstance(given.get("name"), str):
        raise InputError(f"params.yaml: {where}.name is missing. Choose one of: {', '.join(methods.names())}.")
    if given["name"] not in methods.names():
        raise unknown(f"params.yaml: {where}.name", given["name"], methods.names())
    return _check(methods.load(given["name"]).Config, given, where)


def load(path: Path = Path("params.yaml")) -> Params:
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{path} must hold sections such as `data:` and `runs:`; it holds {type(given).__name__}.")
    params = _check(Params, given, "")
    for section in ("teachers", "students", "runs", "knowledge"):
        names = getattr(params, section)
        if not names and section != "knowledge":
            raise InputError(f"params.yaml: {section} is empty; name at least one.")
        for name in names:
            if not NAME.fullmatch(name):
                raise InputError(f"params.yaml: {section}.{name}: a name has letters, digits, '-' and '_' only, 64 at most.")
    for section in ("teachers", "students"):
        for name, net in getattr(params, section).items():
            _buildable(net.net, f"{section}.{name}.net")
    for name, knowledge in params.knowledge.items():
        if knowledge.teacher not in params.teachers:
            raise unknown(f"knowledge.{name}.teacher", knowledge.teacher, params.teachers)
        if name in params.teachers:
            raise InputError(f"params.yaml: knowledge.{name}: a teacher is called {name} too. Choose another name.")
        params.knowledge_method(name)
        for phase in knowledge.phases:
            params.knowledge_phase(name, phase)
    for name, run in params.runs.items():
        if run.teacher not in params.teachers | params.knowledge:
            raise unknown(f"runs.{name}.teacher", run.teacher, params.teachers | params.knowledge)
        if run.student not in params.students:
            raise unknown(f"runs.{name}.student", run.student, params.students)
        params.method(name), params.partner(name), params.run_protocol(name)
        if run.teacher in params.knowledge and run.protocol:
            raise InputError(
                f"params.yaml: runs.{name}.protocol: knowledge.{run.teacher} was learned under the common `protocol`. Leave it out."
            )
        for phase in run.phases:
            params.phase(name, phase)
    for name in params.analysis:
        if name not in params.runs:
            raise unknown("analysis", name, params.runs)
        params.transfer(name)
    return params


def _buildable(name: str, field: str) -> None:
    """A wrong name is found before anything is trained. Importable nets are left to their stage: only it may run their code."""
    try:
        if ":" not in name:
            nets.build(name, classes=2)
        elif name.startswith(torchvision_zoo.PREFIX) and name.removeprefix(torchvision_zoo.PREFIX) not in torchvision_zoo.available():
            raise unknown("net", name.removeprefix(torchvision_zoo.PREFIX), torchvision_zoo.available())
    except InputError as error:
        raise InputError(f"params.yaml: {field}: {error}") from error


M = typing.TypeVar("M", bound=BaseModel)


def _check(model: type[M], given: dict[str, Any], where: str) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InputError(f"params.yaml: {'; '.join(_explain(model, problem, where) for problem in error.errors())}") from error


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    place = ".".join(([where] if where else []) + path)
    if problem["type"] == "extra_forbidden":
        return str(unknown(f"unknown key {place}", path[-1], _fields(model, path[:-1]))).rstrip(".")
    if problem["type"] == "missing":
        return f"{place} is missing"
    given = "" if isinstance(problem["input"], dict) else f" (it is {problem['input']!r})"
    return f"{place}: {problem['msg'].removeprefix('Value error, ').rstrip('.')}{given}"


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The legal keys of the section that `path` leads to."""
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:
            current = typing.get_args(current)[-1]  # dict[str, X]: the key is part of the path
    return list(current.model_fields)
