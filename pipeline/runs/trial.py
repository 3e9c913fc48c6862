"""What each training needs, tried on a few images before hours go into a teacher.

Weights are loaded, networks and methods built, phases and images counted. Nothing is trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.mixing import Mixture
from pipeline.data.store import UNLABELLED, Store
from pipeline.methods import Phase
from pipeline.runs.context import Context
from pipeline.runs.knowledge import facts_of_knowledge, phases_of_teacher, phases_replaced
from pipeline.runs.phase import check_phases
from pipeline.runs.run import KnowledgeRun, Run, TeacherRun
from pipeline.runs.student import build_student
from pipeline.runs.teacher import start_teacher
from pipeline.settings import InputError
from pipeline.taps.tapped import Tapped
from pipeline.training.recipe import TrainConfig


def try_teacher(run: TeacherRun, store: Store) -> Tapped:
    """The network as it starts, frozen."""
    context = Context.of_teacher(store, run.protocol, run.augment)
    teacher = start_teacher(context, run)
    if run.cfg.train.is_trained:
        _check_batch(context, run.cfg.train, f"teachers.{run.name}.train")
    teacher.net.eval().requires_grad_(False)
    return teacher


def try_knowledge(run: KnowledgeRun, teacher: Tapped, store: Store) -> dict[str, Any]:
    """What will be known: the method, its phases and its settings."""
    context = Context.of_students(store, run.protocol, run.augment)
    method = context.build_method(run.method, teacher, teacher)
    phases = phases_of_teacher(run, method.phases(teacher))
    _check_batches(context, run, phases, f"knowledge.{run.name}")
    return facts_of_knowledge(method, phases)


def try_run(run: Run, teacher: Tapped, store: Store, *, knows: Mapping[str, Any]) -> None:
    """`knows`: what `try_knowledge` found, if the run's teacher is an entry of `knowledge`."""
    context = Context.of_students(store, run.protocol, run.augment)
    student, method = build_student(context, run, run.seeds[0], teacher)
    phases = check_phases(method.phases(student), run.phases, f"runs.{run.name}.phases")
    replaced = phases_replaced(knows, method, run)
    _check_batches(context, run, [each for each in phases if each.name not in replaced], f"runs.{run.name}")


def _check_batches(context: Context, run: Run | KnowledgeRun, phases: Sequence[Phase], where: str) -> None:
    for phase in phases:
        cfg, subset = run.training(phase.name), context.subset
        field = f"{where}.phases.{phase.name}" if phase.name in run.phases else "train"
        _check_batch(context, cfg, field)
        if len(subset.unlabelled) and not phase.needs_labels and cfg.unlabelled_share:
            counts = len(subset.rows), len(subset.unlabelled)
            Mixture.of(*counts, cfg.batch_size, cfg.unlabelled_share).check(cfg.accumulate)


def _check_batch(context: Context, cfg: TrainConfig, field: str) -> None:
    """A batch may be larger than a few labelled images (it then holds them all), but not than all images."""
    images = sum(len(context.store.indices(part)) for part in ("train", UNLABELLED))
    if cfg.batch_size > images:
        raise InputError(
            f"{field}.batch_size is {cfg.batch_size}, but there are only {images} images to learn from. "
            f"Lower it to {images} or less."
        )
