"""params.yaml, checked as a whole, and one complete `Run` of it.

Each room has its own Config; this file puts them together.
"""

import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from pipeline import methods, nets
from pipeline.benchmark.speed import BenchmarkConfig
from pipeline.data.augment import KEPT, AugmentConfig
from pipeline.data.protocol import ProtocolConfig
from pipeline.data.sources import DataConfig
from pipeline.export.build_bundle import ExportConfig
from pipeline.functional import Input
from pipeline.methods import MethodConfig
from pipeline.nets import importable, onnx_file, timm_zoo, torchvision_zoo
from pipeline.nets.input import resolve_input
from pipeline.nets.start import check_start
from pipeline.runs.run import KnowledgeRun, Run, StudentConfig, TeacherConfig, TeacherRun
from pipeline.settings import InputError, Settings, read_sections, unknown
from pipeline.training.recipe import TrainConfig, merged

NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
)  # names become file names, stage names and words of a command


class RunConfig(Settings):
    teacher: str
    student: str
    method: dict[str, Any]
    augment: dict[str, Any] = Field(default_factory=dict, description="settings that differ from `augment`")
    protocol: dict[str, Any] = Field(default_factory=dict, description="settings that differ from `protocol`")
    phases: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by phase: settings that differ from `train`"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be different from one another and not negative")
        if max(seeds) >= 2**63:
            raise ValueError("a seed must be below 2 to the power of 63")
        return seeds


class KnowledgeConfig(Settings):
    """Those phases of a method that read the teacher alone, trained before there is a student."""

    teacher: str
    method: dict[str, Any]
    phases: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by phase: settings that differ from `train`"
    )
    seed: int = Field(0, ge=0, lt=2**63)


class AnalysisConfig(Settings):
    """What to look at in a run beyond its accuracy."""

    images: int = Field(
        6, ge=0, le=40, description="in the picture that shows where networks look; 0: no picture"
    )
    transfer: dict[str, Any] = Field(
        default_factory=dict,
        description="other images to test the students' embeddings on, set as under `data`",
    )


class Params(Settings):
    """Every section must be there, since dvc.yaml names it."""

    launcher: str
    data: DataConfig
    augment: AugmentConfig
    protocol: ProtocolConfig
    train: TrainConfig
    teachers: dict[str, TeacherConfig]
    knowledge: dict[str, KnowledgeConfig]
    students: dict[str, StudentConfig]
    runs: dict[str, RunConfig]
    analysis: dict[str, AnalysisConfig] = Field(default_factory=dict, description="by run")
    export: ExportConfig
    benchmark: BenchmarkConfig

    def run(self, name: str) -> Run:
        """Everything about one run, checked."""
        if name not in self.runs:
            raise unknown("runs", name, self.runs)
        cfg = self.runs[name]
        if cfg.teacher not in self.teachers | self.knowledge:
            raise unknown(f"runs.{name}.teacher", cfg.teacher, self.teachers | self.knowledge)
        if cfg.student not in self.students:
            raise unknown(f"runs.{name}.student", cfg.student, self.students)
        method = self._method(name)
        run = Run(
            name=name,
            teacher=cfg.teacher,
            student=self.students[cfg.student],
            student_name=cfg.student,
            method=method,
            partner=_partner(method, f"runs.{name}.method.combine"),
            protocol=self._protocol(name),
            augment=self._augment(name),
            train=self.train,
            phases=self._phases(cfg.phases, f"runs.{name}.phases"),
            seeds=cfg.seeds,
            settings={},
        )
        self._check_run(run)
        for section in ("protocol", "augment"):
            if cfg.teacher in self.knowledge and getattr(cfg, section):
                raise InputError(
                    f"params.yaml: runs.{name}.{section}: knowledge.{cfg.teacher} was learned under the "
                    f"common `{section}`. Leave it out."
                )
        return run.with_settings(self._run_settings(cfg, run))

    def _check_run(self, run: Run) -> None:
        method, where = run.method, f"params.yaml: runs.{run.name}"
        terms = method.term_weight and methods.load(method.name).terms_of != "none"
        if not (method.ce_weight or method.kd_weight or terms or run.partner):
            raise InputError(
                f"{where}.method: all weights are 0, so nothing is learned. Raise ce_weight or kd_weight."
            )
        if run.partner and not run.partner.term_weight:
            raise InputError(
                f"{where}.method.combine.term_weight is 0, so the second method adds nothing. Raise it, or "
                "leave combine out."
            )
        self.check_shift(run.augment, f"runs.{run.name}.augment")

    def check_shift(self, augment: AugmentConfig, where: str) -> None:
        if augment.pad >= self.data.size:
            raise InputError(
                f"params.yaml: {where}.pad is {augment.pad}, so an image could be shifted out of its square "
                f"of {self.data.size} pixels (data.size). Lower it."
            )

    def teacher_run(self, name: str) -> TeacherRun:
        """Everything about the training of one teacher."""
        if name not in self.teachers:
            raise unknown("teachers", name, self.teachers)
        cfg = self.teachers[name]
        settings = {"teacher": cfg.model_dump(mode="json"), "augment": self.augment.model_dump(mode="json")}
        return TeacherRun(name, cfg, self.protocol, self.augment, settings)

    def knowledge_run(self, name: str) -> KnowledgeRun:
        """Everything about one piece of knowledge."""
        cfg = self.knowledge[name]
        if cfg.teacher not in self.teachers:
            raise unknown(f"knowledge.{name}.teacher", cfg.teacher, self.teachers)
        method = _method(cfg.method, f"knowledge.{name}.method")
        settings = {
            "knowledge": cfg.model_dump(mode="json") | {"method": method.model_dump(mode="json")},
            "train": self.train.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"),
            "augment": self.augment.model_dump(mode="json"),
        }
        return KnowledgeRun(
            name=name,
            teacher=cfg.teacher,
            method=method,
            protocol=self.protocol,
            augment=self.augment,
            train=self.train,
            phases=self._phases(cfg.phases, f"knowledge.{name}.phases"),
            seed=cfg.seed,
            settings=settings,
        )

    def trained_teacher(self, name: str) -> TeacherConfig:
        """The teacher behind a name of `teachers` or of `knowledge`."""
        return self.teachers[self.knowledge[name].teacher if name in self.knowledge else name]

    def transfer(self, run: str) -> DataConfig | None:
        """Other images to test the run's students on, decoded as the run's own images are."""
        given, where = self.analysis[run].transfer, f"analysis.{run}.transfer"
        own = {key: getattr(self.data, key) for key in ("size", "channels", "square")}
        for key in own:
            if key in given:
                raise InputError(
                    f"params.yaml: {where}.{key}: other images are decoded as those of `data`. Leave it out."
                )
        return _check(DataConfig, own | given, where) if given else None

    def _method(self, run: str) -> MethodConfig:
        """Settings that knowledge was learned with need not be repeated in the runs that use it."""
        given, known = self.runs[run].method, self.knowledge.get(self.runs[run].teacher)
        if known and known.method.get("name") == given.get("name"):
            given = known.method | given
        return _method(given, f"runs.{run}.method")

    def _augment(self, run: str) -> AugmentConfig:
        """A run's own preset replaces all common settings but the fixed views; other settings change one."""
        own = self.runs[run].augment
        common = self.augment.model_dump(include=KEPT if "preset" in own else None)
        return _check(AugmentConfig, common | own, f"runs.{run}.augment")

    def _protocol(self, run: str) -> ProtocolConfig:
        own = self.runs[run].protocol
        for key in ("class_overlap", "class_seed"):
            if key in own:
                raise InputError(
                    f"params.yaml: runs.{run}.protocol.{key}: runs share their teachers, so it is set once, "
                    "in `protocol`."
                )
        return _check(ProtocolConfig, self.protocol.model_dump() | own, f"runs.{run}.protocol")

    def _phases(self, given: dict[str, dict[str, Any]], where: str) -> dict[str, TrainConfig]:
        return {
            phase: _check(TrainConfig, merged(self.train, own), f"{where}.{phase}")
            for phase, own in given.items()
        }

    def _run_settings(self, cfg: RunConfig, run: Run) -> dict[str, Any]:
        """Everything a run is trained with, defaults written out, as plain JSON."""
        combine = run.partner.model_dump(mode="json") if run.partner else {}
        method = run.method.model_dump(mode="json") | {"combine": combine}
        known = self.knowledge.get(cfg.teacher)
        teacher = known.teacher if known else cfg.teacher
        return {
            "run": cfg.model_dump(mode="json") | {"method": method, "teacher": teacher},
            "knowledge": {cfg.teacher: known.model_dump(mode="json")} if known else {},
            "phases": {phase: train.model_dump(mode="json") for phase, train in run.phases.items()},
            "train": run.train.model_dump(mode="json"),
            "student": run.student.model_dump(mode="json"),
            "protocol": run.protocol.model_dump(mode="json"),
            "augment": run.augment.model_dump(mode="json"),
        }


def load_params(path: Path = Path("params.yaml")) -> Params:
    params = _check(Params, read_sections(path), "")
    _check_names(params)
    params.check_shift(params.augment, "augment")
    for section in ("teachers", "students"):
        for name, net in getattr(params, section).items():
            _check_net(net.net, f"{section}.{name}.net")
            _check_input(net, params.data, f"{section}.{name}")
    for name in params.knowledge:
        if name in params.teachers:
            raise InputError(
                f"params.yaml: knowledge.{name}: there is also a teacher of this name. Choose another name."
            )
        params.knowledge_run(name)
    for name in params.runs:
        params.run(name)
    for name in params.analysis:
        if name not in params.runs:
            raise unknown("analysis", name, params.runs)
        params.transfer(name)
    return params


def _check_names(params: Params) -> None:
    for section in ("teachers", "students", "runs", "knowledge"):
        names = getattr(params, section)
        if not names and section != "knowledge":
            raise InputError(f"params.yaml: {section} is empty. Name at least one.")
        for name in names:
            if not NAME.fullmatch(name):
                raise InputError(
                    f"params.yaml: {section}.{name}: a name has letters, digits, '-' and '_', 64 at most; it "
                    "starts with a letter or digit."
                )


def _check_net(name: str, field: str) -> None:
    """Find a wrong name before anything is trained.

    Networks of `module:factory` are left to their own stage, since only it may run their code.
    """
    try:
        if ":" not in name or name.startswith(onnx_file.PREFIX):
            nets.build(name, classes=2)
        elif name.startswith(torchvision_zoo.PREFIX):
            torchvision_zoo.member_of(name)
        elif name.startswith(timm_zoo.PREFIX):
            timm_zoo.member_of(name)
        else:
            importable.parts_of(name)
    except InputError as error:
        raise InputError(f"params.yaml: {field}: {error}") from error


def _check_input(net: StudentConfig | TeacherConfig, data: DataConfig, field: str) -> None:
    """Whether it is known how the network takes its images. The data's own numbers do not matter here."""
    channels = data.channels
    try:
        check_start(net.start, net=net.net, field=f"{field}.start")
        resolve_input(
            net.input,
            net=net.net,
            source=net.start.source,
            data=Input(data.size, (0.5,) * channels, (0.5,) * channels),
            field=field,
        )
    except InputError as error:
        raise InputError(f"params.yaml: {error}") from error


def _method(given: dict[str, Any], where: str) -> MethodConfig:
    if not isinstance(given.get("name"), str):
        raise InputError(
            f"params.yaml: {where}.name is missing. Choose one of: {', '.join(methods.names())}."
        )
    if given["name"] not in methods.names():
        raise unknown(f"params.yaml: {where}.name", given["name"], methods.names())
    return _check(methods.load(given["name"]).Config, given, where)


def _partner(method: MethodConfig, where: str) -> MethodConfig | None:
    """The second method of a run. Only its terms count: labels and KD have the run's own weights."""
    if not method.combine:
        return None
    for key in ("ce_weight", "kd_weight", "combine"):
        if key in method.combine:
            raise InputError(
                f"params.yaml: {where}.{key}: a partner only adds its terms. Set {key} of "
                f"{where.removesuffix('.combine')} instead."
            )
    partner = _method(method.combine | {"ce_weight": 0.0, "kd_weight": 0.0}, where)
    if partner.name == method.name:
        raise InputError(
            f"params.yaml: {where}.name: {method.name} cannot be combined with itself. Name another method."
        )
    return partner


M = typing.TypeVar("M", bound=BaseModel)


def _check(model: type[M], given: dict[str, Any], where: str) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_explain(model, problem, where) for problem in error.errors())
        raise InputError(f"params.yaml: {problems}") from error


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    place = ".".join(([where] if where else []) + path)
    if problem["type"] == "extra_forbidden":
        section = _section(model, path[:-1])
        renamed = getattr(section, "RENAMED", {})
        if path[-1] in renamed:
            return f"{place} is now called {renamed[path[-1]]}"
        return str(unknown(f"unknown key {place}", path[-1], section.model_fields)).rstrip(".")
    if problem["type"] == "missing":
        return f"{place} is missing"
    given = "" if isinstance(problem["input"], dict) else f" (it is {problem['input']!r})"
    return f"{place}: {problem['msg'].removeprefix('Value error, ').rstrip('.')}{given}"


def _section(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The Config of the section that `path` leads to."""
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:
            current = typing.get_args(current)[-1]  # dict[str, X]: the key is part of the path
    section: type[BaseModel] = current
    return section
