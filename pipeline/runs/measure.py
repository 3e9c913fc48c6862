"""What a training will cost here: a few real steps of each phase, with weights that nobody has trained."""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pipeline import methods
from pipeline.data.batches import Batch, Batches
from pipeline.data.store import Store
from pipeline.device import synchronise
from pipeline.methods import Phase
from pipeline.nets.onnx_file import PREFIX
from pipeline.records.place import PLAN
from pipeline.runs.context import Context
from pipeline.runs.measure_answers import Known, Needed, answers_as_stored
from pipeline.runs.phase import Trainee
from pipeline.runs.precision import settled
from pipeline.runs.run import KnowledgeRun, Run, StudentConfig, TeacherConfig, TeacherRun
from pipeline.runs.teacher import SEED, start_teacher, teacher_phase
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import fit
from pipeline.training.recipe import TrainConfig

WARM_UP, FEWEST = 3, 3  # steps that are not counted, and those that are counted at least
SECONDS = 1.0  # to measure a phase for, once it is warm
ANSWERED = 16  # images that a network answers to
NO_END = {"epochs": 0, "steps": 2000, "points": 1, "patience": 0, "lr": 1e-12}  # weights stay as they are


@dataclass(frozen=True)
class PhaseCost:
    """One phase with one seed."""

    name: str
    steps: int
    step: float  # seconds
    points: int
    validation: float  # seconds at each point
    answers: Needed | None = None  # stored ones of the teacher
    live: str = ""  # why the teacher runs live, though views are fixed

    @property
    def seconds(self) -> float:
        """With answers that are there."""
        return self.steps * self.step + self.points * self.validation


@dataclass
class Cost:
    """What a stage that trains will cost."""

    seeds: int = 1
    set_up: float = 0.0  # seconds, once
    build: float = 0.0  # seconds for each further seed
    phases: list[PhaseCost] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)  # and buffers, by what they belong to
    answer: dict[str, float] = field(default_factory=dict)  # seconds on the CPU for one image, by network
    images: int = 0  # that students learn from, with labels
    memory_mb: float = 0.0  # the largest that the process had
    device_mb: float = 0.0  # the same on a GPU

    @property
    def seconds(self) -> float:
        """Without the start of the process."""
        each = sum(phase.seconds for phase in self.phases)
        return self.set_up + (self.seeds - 1) * self.build + self.seeds * each


def measure_teacher(run: TeacherRun, data: Path | Store) -> Cost:
    with _Measuring() as measuring:
        context = Context.of_teacher(data, run.protocol, run.augment)
        teacher = _teacher(context, run)
        if run.cfg.train.is_trained:
            method = context.build_method(methods.load("ce").Config(name="ce"), teacher, None)
            phase, trainee = teacher_phase(run, teacher, method), Trainee(SEED, teacher, None, method)
            measuring.train(context, trainee, phase, run.cfg.train, validated=True)
        measuring.look_at(context, teacher=teacher)
    return measuring.cost


def measure_knowledge(
    run: KnowledgeRun, teacher: TeacherRun, data: Path | Store, *, trained: Path | None = None
) -> Cost:
    """`trained`: the teacher, if it is there already."""
    with _Measuring() as measuring:
        context = Context.of_students(data, run.protocol, run.augment)
        teacher_net, placeholder = (_teacher(context, teacher, trained) for _ in range(2))
        known = Known(teacher.name, trained is not None, run.name)
        method = context.build_method(run.method, placeholder, teacher_net)
        trainee = Trainee(run.seed, placeholder, teacher_net, method)
        for phase in method.phases(placeholder):
            if phase.of_teacher:
                measuring.train(
                    context, trainee, phase, run.training(phase.name), validated=False, known=known
                )
        measuring.look_at(context, method, teacher=teacher_net)
    return measuring.cost


def measure_run(
    run: Run,
    stage: str,
    teacher: TeacherRun,
    data: Path | Store,
    *,
    is_known: bool,
    trained: Path | None = None,
) -> Cost:
    """Stage `pretrain` or `distill`. `is_known`: the teacher has learned what the method learns from it.
    `trained`: the teacher, if it is there already."""
    with _Measuring() as measuring:
        context = Context.of_students(data, run.protocol, run.augment)
        teacher_net = _teacher(context, teacher, trained)
        begun = time.perf_counter()
        torch.manual_seed(run.seeds[0])
        student = _network(context, run.student, f"students.{run.student_name}")
        method = context.build_method(run.method, student, teacher_net, run.partner)
        measuring.cost.seeds, measuring.cost.build = len(run.seeds), time.perf_counter() - begun
        *early, last = method.phases(student)
        phases = (
            [last] if stage == "distill" else [each for each in early if not (is_known and each.of_teacher)]
        )
        learned, times = (run.teacher, 1) if is_known else (f"run {run.name}", len(run.seeds))
        known = Known(teacher.name, trained is not None, learned, times)
        for phase in phases:
            trainee, cfg = Trainee(run.seeds[0], student, teacher_net, method), run.training(phase.name)
            measuring.train(context, trainee, phase, cfg, validated=phase is last, known=known)
        measuring.look_at(context, method, teacher=teacher_net, student=student)
    return measuring.cost


def answers_of_run(run: Run, teacher: TeacherRun, data: Path | Store) -> Cost:
    """Nothing is trained: how fast both networks of a run answer, and how large they are."""
    with _Measuring() as measuring:
        context = Context.of_students(data, run.protocol, run.augment)
        student = _network(context, run.student, f"students.{run.student_name}")
        measuring.look_at(context, teacher=_teacher(context, teacher), student=student)
    return measuring.cost


class _Measuring:
    """Fills a `Cost`: all time that is not spent in steps, validation and `look_at` is set-up."""

    def __init__(self) -> None:
        self.cost, self.begun, self.counted = Cost(), time.perf_counter(), 0.0

    def __enter__(self) -> "_Measuring":
        return self

    def __exit__(self, *_: object) -> None:
        self.cost.set_up = time.perf_counter() - self.begun - self.counted
        self.cost.memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        if torch.cuda.is_available():
            self.cost.device_mb = torch.cuda.max_memory_allocated() / 1e6

    def train(
        self,
        context: Context,
        trainee: Trainee,
        phase: Phase,
        cfg: TrainConfig,
        *,
        validated: bool,
        known: Known | None = None,
    ) -> None:
        cfg, _ = settled(context, trainee.student, trainee.teacher, cfg, work=PLAN.parent)
        batches = context.batches(
            cfg, trainee.seed, trainee.student, trainee.teacher, needs_labels=phase.needs_labels
        )
        start = time.perf_counter()
        with answers_as_stored(context, phase, batches, cfg, trainee, known, PLAN.parent) as (needed, live):
            self.counted += time.perf_counter() - start
            watched = _Watched(batches)
            fit(
                phase,
                watched,
                cfg.model_copy(update=NO_END),
                student=trainee.student,
                teacher=trainee.teacher,
                method=trainee.method,
                accelerator=context.accelerator,
                seed=trainee.seed,
            )
        steps, epochs = cfg.total_steps(len(batches)), -(-cfg.total_steps(len(batches)) // len(batches))
        points = -(-epochs // -(-epochs // cfg.points)) if validated else 0
        seconds = self._seconds_of_validation(context, trainee.student) if validated else 0.0
        self.counted += watched.seconds
        self.cost.phases.append(
            PhaseCost(phase.name, steps, watched.seconds / watched.steps, points, seconds, needed, live)
        )

    def _seconds_of_validation(self, context: Context, student: Tapped) -> float:
        validate = partial(context.validate, student.net, student.input)
        validate()  # reads the images
        start = time.perf_counter()
        validate()
        seconds = time.perf_counter() - start
        self.counted += seconds
        return seconds

    def look_at(self, context: Context, method: nn.Module | None = None, **networks: Tapped) -> None:
        """How large everything is, and how fast the networks answer on the CPU."""
        start = time.perf_counter()
        modules = {name: network.net for name, network in networks.items()} | {
            "method": method or nn.Module()
        }
        for name, module in modules.items():
            self.cost.parameters[name] = sum(tensor.numel() for tensor in module.state_dict().values())
        for name, network in networks.items():
            self.cost.answer[name] = _seconds_to_answer(network, context)
        self.cost.images = len(context.subset.rows)
        self.counted += time.perf_counter() - start


class _Watched(Batches):
    """The same batches, until enough steps were measured."""

    def __init__(self, batches: Batches) -> None:
        vars(self).update(vars(batches))
        self.steps, self.is_over = -WARM_UP, False
        self.start = self.seconds = 0.0

    def epoch(self, n: int, first: int = 0) -> Iterator[Batch]:
        if self._is_enough():
            return
        for batch in super().epoch(n, first):
            if self._is_enough():
                return
            self.steps += 1
            yield batch

    def _is_enough(self) -> bool:
        if self.steps >= 0 and not self.is_over:
            synchronise()
            self.start = self.start or time.perf_counter()
            self.seconds = time.perf_counter() - self.start
            self.is_over = self.steps >= FEWEST and self.seconds >= SECONDS
        return self.is_over


def _teacher(context: Context, run: TeacherRun, trained: Path | None = None) -> Tapped:
    """The network of a teacher, frozen. Its batch norms know one batch, so that its answers are finite."""
    if trained is not None:
        known = context.load_network(trained)
        known.net.eval().requires_grad_(False)
        return known
    if run.cfg.net.startswith(PREFIX):  # without its file it is nothing
        return start_teacher(context, run)
    teacher = _network(context, run.cfg, f"teachers.{run.name}")
    norms = [each for each in teacher.net.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        teacher.net.train()(context.images(context.subset.rows[:ANSWERED], teacher.input))
    teacher.net.eval().requires_grad_(False)
    return teacher


def _network(context: Context, cfg: StudentConfig | TeacherConfig, field: str) -> Tapped:
    """The network of `cfg` with random weights."""
    input = context.input_of(cfg, cfg.start.source, field)
    return context.tap(context.build_network(cfg), cfg.taps, input)


def _seconds_to_answer(network: Tapped, context: Context) -> float:
    """On the CPU, where networks are evaluated and exported."""
    images = context.images(context.subset.rows[:ANSWERED], network.input).cpu()
    with in_eval_mode(network.net.cpu()):
        network.net(images)
        start = time.perf_counter()
        network.net(images)
    return (time.perf_counter() - start) / len(images)
