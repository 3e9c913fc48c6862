"""What each stage will cost: trainings are measured, everything else is guessed from what they were."""

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis import COMPARED
from pipeline.project.ahead import Stage
from pipeline.settings import InputError

if TYPE_CHECKING:  # so that the other commands do not load torch
    from pipeline.data.store import Store
    from pipeline.params import Params
    from pipeline.runs.measure import Cost
    from pipeline.runs.measure_answers import Made

# What DVC does around a stage, and stages whose time hardly depends on the settings, as they are with the
# digits: multiples of the time in which a process with torch starts, which is measured.
AROUND = 0.5
STARTS = {
    "check": 1.5,
    "prepare": 1.8,
    "trial": 1.0,
    "views": 0.7,
    "analyse": 1.9,
    "evaluate": 0.5,
    "export": 4.0,
    "benchmark": 3.1,
    "report": 0.25,
    "track": 3.2,
}
TRAINING = ("teacher", "knowledge", "pretrain", "distill")
ANSWERING = ("analyse", "evaluate", "export")  # in which trained networks answer
COPIES = 2  # of what a stage makes: in its place, and in DVC's cache
BUNDLE = 3.4  # an ONNX file, TorchScript and safetensors, and a quarter for int8: times the student's weights
COPIES_OF_BUNDLE = 3  # MLflow has one too
WRITING = 100e6  # bytes in a second, with hashes and copies
PLAIN_MB = 0.3  # records, pictures, tables
VARIANTS = 7  # that a benchmark compares
PRELOADED = ["stages", "pipeline.params", "pipeline.runs.student", "pipeline.runs.measure"]


@dataclass(frozen=True)
class Estimate:
    """Of one stage. None: not known."""

    seconds: float
    disk_mb: float
    memory_mb: float | None = None
    device_mb: float = 0.0
    how: str = "assumed"


@dataclass(frozen=True)
class Pictures:
    """What the trainings will read."""

    store: "Path | Store"  # of `prepare`, or what stands in for it
    splits: Mapping[str, int]
    unlabelled: int
    decode: float  # seconds for all pictures
    kept: int  # bytes that their squares take on the disk
    how: str

    @property
    def count(self) -> int:
        return sum(self.splits.values()) + self.unlabelled


def look_at_pictures(params: "Params", prepared: Path, *, is_there: bool) -> Pictures:
    """`is_there`: whether the store in `prepared` is the one that will be used."""
    from pipeline.data.stand_in import stand_in
    from pipeline.data.store import Store

    if is_there:
        manifest = Store.open(prepared).manifest
        return Pictures(prepared, manifest["splits"], manifest["unlabelled"], 0.0, 0, "the prepared images")
    found = stand_in(params.data)
    splits, unlabelled = found.store.manifest["splits"], found.store.manifest["unlabelled"]
    count = sum(splits.values()) + unlabelled
    how = f"{count:,} pictures, of which {found.sampled} were decoded; duplicates are not known yet"
    return Pictures(found.store, splits, unlabelled, count * found.seconds, found.kept, how)


def estimates(
    params: "Params",
    stages: list[Stage],
    pictures: Pictures,
    *,
    teachers: Path,
    threads: int | None = None,
) -> tuple[float, dict[str, Estimate]]:
    """The seconds that a stage needs beside its work, and what each stage that will run is going to cost.

    `teachers`: the folder of those that are trained. `threads`: of each process, if not as many as usual.
    """
    from pipeline.runs.measure_answers import Made

    running = [stage for stage in stages if stage.state == "runs"]
    trained, costs = _trained(teachers, stages), dict[str, "Cost"]()
    with _processes(threads) as process:
        begun = time.perf_counter()
        process(_nothing)
        start = time.perf_counter() - begun
        for stage in running:
            if stage.kind in TRAINING:
                costs[stage.name] = process(_measuring(params, stage, pictures, trained))
            elif stage.kind in ANSWERING:  # an earlier stage of the run may have seen both networks
                earlier = next((costs[name] for name in _of_run(stage.key) if name in costs), None)
                costs[stage.name] = earlier or process(_measuring(params, stage, pictures, trained))
    found = {
        stage.name: _estimate(params, stage, pictures, start, costs.get(stage.name)) for stage in running
    }
    made = Made()
    for stage in running:
        if stage.kind in TRAINING:
            found[stage.name] = with_answers(found[stage.name], costs[stage.name], made)
    return start * (1 + AROUND), found


def _trained(teachers: Path, stages: list[Stage]) -> dict[str, Path]:
    """The folders of the teachers that are there already."""
    kept = [stage.key for stage in stages if stage.kind == "teacher" and stage.state == "up to date"]
    return {name: teachers / name for name in kept}


def with_answers(estimate: Estimate, cost: "Cost", made: "Made") -> Estimate:
    """The estimate of a training, with the stored answers of its teacher that nobody has made before."""
    for needed in (phase.answers for phase in cost.phases):
        if needed is not None:
            count, megabytes = made.add(needed)
            words = f"{count:,} answers in {_length(needed.seconds)} each" if count else "answers are there"
            estimate = replace(
                estimate,
                seconds=estimate.seconds + count * needed.seconds,
                disk_mb=estimate.disk_mb + megabytes,
                how=f"{estimate.how}; teacher: {words}",
            )
    return estimate


def _of_run(run: str) -> tuple[str, ...]:
    """The stages of a run that may have seen both of its networks."""
    return tuple(f"{kind}@{run}" for kind in ("distill", *ANSWERING))


def _estimate(
    params: "Params", stage: Stage, pictures: Pictures, start: float, cost: "Cost | None"
) -> Estimate:
    if cost is not None and stage.kind in TRAINING:
        return Estimate(
            (1 + AROUND) * start + cost.seconds,
            COPIES * 4e-6 * _saved(stage.kind, cost) + PLAIN_MB,
            cost.memory_mb,
            cost.device_mb,
            _how(cost),
        )
    seconds, disk, how = (AROUND + STARTS[stage.kind]) * start, PLAIN_MB, "assumed"
    if stage.kind == "prepare":
        seconds += pictures.decode + pictures.kept / WRITING
        disk += COPIES * pictures.kept / 1e6
        how = "a few pictures decoded"
    if stage.kind == "benchmark":
        seconds += VARIANTS * len({1, *params.benchmark.batches}) * params.benchmark.seconds
    if cost is not None:
        seconds += _answers(params, stage, pictures, cost)
        how = "networks answered a few images; the rest assumed"
        if stage.kind == "export":
            disk += COPIES_OF_BUNDLE * BUNDLE * 4e-6 * cost.parameters["student"]
    return Estimate(seconds, disk, how=how)


def _answers(params: "Params", stage: Stage, pictures: Pictures, cost: "Cost") -> float:
    """Seconds in which networks answer to images."""
    student, teacher, tests = cost.answer["student"], cost.answer["teacher"], pictures.splits["test"]
    seeds = len(params.runs[stage.key].seeds)
    if stage.kind == "evaluate":
        return tests * (seeds * student + teacher)
    if stage.kind == "analyse":  # linear probes, and a comparison of maps; before and after the distillation
        compared = min(pictures.splits["val"], COMPARED)
        probed = cost.images + pictures.splits["val"]
        return 2 * seeds * ((probed + compared) * student + compared * teacher)
    checked = len(params.export.formats) * min(tests, params.export.parity_images)
    int8 = params.export.int8.images + 4 * params.export.int8.check if "int8" in params.export.formats else 0
    return (checked + min(int8, 4 * pictures.count)) * student


def _saved(kind: str, cost: "Cost") -> int:
    """How many numbers a stage that trains saves."""
    size = cost.parameters
    match kind:
        case "teacher":
            return size["teacher"]
        case "knowledge":
            return size["teacher"] + size["method"]
        case "pretrain":
            return cost.seeds * (size["student"] + size["method"])
    return cost.seeds * size["student"]


def _how(cost: "Cost") -> str:
    if not cost.phases:
        return "measured: nothing to train"
    return (
        "measured: "
        + "; ".join(
            f"{phase.name} {phase.steps:,} steps of {_length(phase.step)}"
            + (f", {phase.points} validations of {_length(phase.validation)}" if phase.points else "")
            + (", the teacher live" if phase.live else "")
            for phase in cost.phases
        )
        + (f", {cost.seeds} times" if cost.seeds > 1 else "")
    )


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def _measuring(
    params: "Params", stage: Stage, pictures: Pictures, trained: Mapping[str, Path]
) -> Callable[[], "Cost"]:
    """What to call in a process of its own."""
    from pipeline.runs.measure import answers_of_run, measure_knowledge, measure_run, measure_teacher

    if stage.kind == "teacher":
        return partial(measure_teacher, params.teacher_run(stage.key), pictures.store)
    if stage.kind == "knowledge":
        knowledge = params.knowledge_run(stage.key)
        teacher = params.teacher_run(knowledge.teacher)
        there = trained.get(teacher.name)
        return partial(measure_knowledge, knowledge, teacher, pictures.store, trained=there)
    run = params.run(stage.key)
    known = params.knowledge.get(run.teacher)
    teacher = params.teacher_run(known.teacher if known else run.teacher)
    if stage.kind in ANSWERING:
        return partial(answers_of_run, run, teacher, pictures.store)
    is_known = known is not None and known.method["name"] == run.method.name
    there = trained.get(teacher.name)
    return partial(measure_run, run, stage.kind, teacher, pictures.store, is_known=is_known, trained=there)


@contextmanager
def _processes(threads: int | None = None) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Yield a function that calls another one in a fresh process, so that its memory is its own.

    The processes are forks of one that has only imported what a stage imports: an import takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:

        def call(function: Callable[[], Any]) -> Any:
            try:
                return pool.submit(_silently, function, threads).result()
            except BrokenProcessPool as error:
                raise InputError(
                    "A process that measured a training was killed: probably there is too little memory for "
                    "it. Lower train.batch_size, raise train.accumulate, or choose smaller networks."
                ) from error

        yield call


def _silently(function: "Callable[[], Cost | None]", threads: int | None) -> "Cost | None":
    """What `function` returns, with the memory of a process that imports everything itself."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        cost = function()
    if cost is not None:
        cost.memory_mb += max(0.0, _mapped_mb(os.getppid()) - _mapped_mb(os.getpid()))
    return cost


def _mapped_mb(process: int) -> float:
    """How much a process has read of the files that it maps, such as libraries. Its forks do not count it."""
    (line,) = re.findall(r"^RssFile:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return float(line) / 1000


def _nothing() -> None:
    """To see how long the start of a process takes."""
