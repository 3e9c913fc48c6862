"""One phase of a method, trained with one seed."""

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.device import computing
from pipeline.methods import Method, Phase
from pipeline.records.progress import OnPoint
from pipeline.records.record import Curves, Result
from pipeline.runs.answers import stored_answers
from pipeline.runs.context import Context
from pipeline.runs.precision import settled
from pipeline.runs.work_folder import ANSWERS
from pipeline.settings import unknown
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import Validate, fit
from pipeline.training.recipe import TrainConfig

REACHED = {"val_accuracy": "validation accuracy", "val_nearest_mean": "accuracy of the nearest class mean"}


@dataclass(frozen=True)
class Trainee:
    """A network to train, and what trains it."""

    seed: int
    student: Tapped
    teacher: Tapped | None
    method: Method[Any]


@dataclass(frozen=True)
class Trained:
    """What came of one phase."""

    curves: Curves
    teacher: dict[str, Any]  # with fixed views: what was read of the teacher, and whether it ran live
    precision: dict[str, Any]  # what auto stands for

    def add_to(self, result: Result, curve: str) -> None:
        result.curves[curve] = self.curves
        for name, facts in (("answers", self.teacher), ("precision", self.precision)):
            if facts:
                result.details.setdefault(name, {})[curve] = facts


def train_phase(
    context: Context,
    trainee: Trainee,
    phase: Phase,
    cfg: TrainConfig,
    *,
    validate: Validate | None,
    folder: Path,
    stage: Path,
    curve: str,
    label: str,
    on_point: OnPoint,
) -> Trained:
    """Train one phase and print one line about it. With `validate`, the student ends with its best weights.

    `label` says in this line what is trained. `folder` holds the state of an unfinished training. `stage` is
    the work folder of the stage; beside it lies what all stages share. `on_point` gets the name `curve` and
    the curves so far. The order of the images, all other views and all random numbers depend only on the seed
    and the phase's name.
    """
    parts: dict[str, Any] = {
        "student": trainee.student,
        "teacher": trainee.teacher,
        "method": trainee.method,
    }
    begun = stage / f"{phase.name}.precision.json"
    cfg, precision = settled(
        context, trainee.student, trainee.teacher, cfg, work=stage.parent, begun=begun, label=label
    )
    own_seed = zlib.crc32(f"{trainee.seed}/{phase.name}".encode())
    batches = context.batches(
        cfg, own_seed, trainee.student, trainee.teacher, needs_labels=phase.needs_labels
    )
    facts: dict[str, Any] = {}
    if trainee.teacher is not None and batches.fixed_views:
        with computing([], cfg.precision, deterministic=cfg.deterministic):
            batches.answers, facts = stored_answers(
                context,
                phase,
                batches,
                cfg,
                **parts,
                folder=stage.parent / ANSWERS,
                label=label,
            )
    curves = fit(
        phase,
        batches,
        cfg,
        **parts,
        accelerator=context.accelerator,
        seed=own_seed,
        validate=validate,
        on_point=lambda so_far: on_point(curve, so_far),
        state_file=folder / f"{phase.name}.state",
        label=label,
    )
    if context.is_main:
        planned = cfg.total_steps(len(batches)) / len(batches)
        told = _told(curves, planned, labelled=batches.labelled, unlabelled=batches.unlabelled)
        print(f"{label}: {told}", flush=True)
    return Trained(curves, facts, precision)


def _told(curves: Curves, planned: float, *, labelled: int, unlabelled: int) -> str:
    """How far a phase of so many epochs went, and what it reached."""
    trained, seconds = curves["epoch"][-1], curves["seconds"][-1]
    length = f"{round(trained, 2):g}" + (f" of {round(planned, 2):g}" if trained < planned else "")
    reached = (
        next((f"{words} {max(curves[name]):.1%}" for name, words in REACHED.items() if name in curves), "")
        or f"loss {curves['loss'][-1]:.4g}"
    )
    others = f" and {unlabelled} without labels" if unlabelled else ""
    epochs = "epoch" if length == "1" else "epochs"
    return f"{length} {epochs} on {labelled} images{others}, {seconds:.1f} s, {reached}"


def check_phases(phases: list[Phase], named: Collection[str], field: str) -> list[Phase]:
    """The phases of a method. Refused if the setting `field` names a phase that is not among them."""
    names = [phase.name for phase in phases]
    for name in named:
        if name not in names:
            raise unknown(field, name, names)
    return phases
