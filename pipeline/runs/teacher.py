"""A teacher: fine-tuned on the whole training split, or taken as it is."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import methods
from pipeline.checkpoint import save_network
from pipeline.device import fix_workspace
from pipeline.files import atomic_folder, sha256
from pipeline.functional import lowest_rate
from pipeline.methods import Method, Phase
from pipeline.nets.start import keep_outputs, known_classes
from pipeline.records.progress import OnPoint
from pipeline.records.record import Result
from pipeline.runs.context import Context
from pipeline.runs.phase import Trained, Trainee, train_phase
from pipeline.runs.run import TeacherRun
from pipeline.runs.start_network import start_network
from pipeline.runs.work_folder import work_folder
from pipeline.settings import InputError
from pipeline.taps.tapped import Tapped

SEED = 0


def train_teacher(
    run: TeacherRun, *, data: Path, out: Path, work: Path, code: str, on_point: OnPoint
) -> Result:
    """`code` is the hash of this stage's code: an unfinished training with other code is not continued."""
    fix_workspace(asked=run.cfg.train.deterministic)
    context = Context.of_teacher(data, run.protocol, run.augment)
    result = Result(
        inputs={"data": context.store.content, "code": code}, details={"subset": context.describe_subset()}
    )
    trained_by = {**run.settings, "teacher": run.cfg.model_dump(mode="json", exclude={"min_accuracy"})}
    depends = {"settings": trained_by, "inputs": result.inputs, "classes": context.subset.classes}
    with work_folder(work, "teacher", run.name, depends, is_main=context.is_main) as folder:
        torch.manual_seed(SEED)
        teacher = start_teacher(context, run)
        if run.cfg.train.is_trained:
            _train(context, run, teacher, folder, on_point).add_to(result, "teacher")
        result.metrics = context.validate(teacher.net, teacher.input)
        check_accuracy(run, result.metrics, context.validation.labels, sheet=data / "sheet.png")
        if context.is_main:
            if not run.cfg.train.is_trained:
                accuracy = result.metrics["val_accuracy"]
                print(f"teacher {run.name}: taken as it is, validation accuracy {accuracy:.1%}", flush=True)
            facts = {"net": run.cfg.net} | context.facts(teacher) | result.metrics
            with atomic_folder(out) as filled:
                save_network(filled, teacher.net.state_dict(), facts)
            result.outputs["teacher"] = sha256(out)
    return result


def start_teacher(context: Context, run: TeacherRun) -> Tapped:
    """The network with its first weights, for the classes of the data."""
    cfg, field = run.cfg, f"teachers.{run.name}"
    input = context.input_of(cfg, cfg.start.source, field)
    named = _classes_of_weights(run, context.classes)
    net = context.build_network(cfg, classes=len(named) or None)
    loaded = start_network(context, net, cfg.net, cfg.start, field)
    if named:
        if new := [name for name, _ in net.named_parameters() if name not in loaded]:
            raise InputError(
                f"{field}.classes names {len(named)} classes, but the weights do not fit a network of so "
                f"many ({', '.join(new[:3])} would be new). Name all classes of the weights, in the order of "
                "the outputs."
            )
        keep_outputs(net, [named.index(name) for name in context.classes])
    return context.tap(net, cfg.taps, input, loaded)


def check_accuracy(run: TeacherRun, scores: Mapping[str, float], labels: np.ndarray, *, sheet: Path) -> None:
    """Refuse a teacher that is worse than wanted, or that may be no better than a guess.

    A guess names the most frequent class. With `train.select` balanced_accuracy or macro_f1 the balanced
    accuracy must be better than that of a guess. Too few images tell nothing: then nothing is refused.
    """
    cfg, counts = run.cfg, np.unique_counts(labels).counts
    is_balanced = cfg.train.select in ("balanced_accuracy", "macro_f1")
    name = "val_balanced_accuracy" if is_balanced else "val_accuracy"
    accuracy, guess = scores[name], 1 / len(counts) if is_balanced else counts.max() / len(labels)
    if cfg.min_accuracy is not None:
        if scores["val_accuracy"] >= cfg.min_accuracy:
            return
        name = "val_accuracy"
        what = f"{scores[name]:.1%}, below min_accuracy ({cfg.min_accuracy:.1%})"
    elif lowest_rate(accuracy, len(labels)) > guess or lowest_rate(1.0, len(labels)) <= guess:
        return
    else:
        what = f"{accuracy:.1%} on {len(labels)} images, hardly better than a guess ({guess:.1%})"
    raise InputError(
        f"teachers.{run.name}: its {name.removeprefix('val_').replace('_', ' ')} on validation is {what}, so "
        f"students would learn little from it. Look at the pictures and their classes ({sheet}), at the "
        "curve of its training (train.lr, train.epochs), at its weights and their classes (start, classes), "
        f"and at augment. To go on with it as it is, set teachers.{run.name}.min_accuracy to 0."
    )


def _classes_of_weights(run: TeacherRun, wanted: list[str]) -> list[str]:
    """The classes that the loaded weights tell apart, if all of `wanted` must be among them; else none."""
    cfg, field = run.cfg, f"teachers.{run.name}"
    named = list(cfg.classes)
    if not named and not cfg.train.is_trained:
        named = known_classes(cfg.net, cfg.start.source) or []
        if not named:
            raise InputError(
                f"{field}.train.epochs is 0, so the teacher is taken as it is, but nobody knows which "
                "classes its outputs stand for. Name them in their order, "
                f"`classes: [{', '.join(wanted[:3])}, ...]`, or train it (epochs: 1 or more)."
            )
    if named and (missing := [name for name in wanted if name not in named]):
        raise InputError(
            f"{field}: its weights do not know {len(missing)} of the data's classes, such as {missing[0]!r} "
            f"(they know {', '.join(named[:3])}, ...). Give the folders the names in `classes`, or train the "
            "teacher: leave `classes` out, and set train.epochs to 1 or more."
        )
    return named


def _train(context: Context, run: TeacherRun, teacher: Tapped, folder: Path, on_point: OnPoint) -> Trained:
    method = context.build_method(methods.load("ce").Config(name="ce"), teacher, None)
    return train_phase(
        context,
        Trainee(SEED, teacher, None, method),
        teacher_phase(run, teacher, method),
        run.cfg.train,
        folder=folder,
        stage=folder,
        curve="teacher",
        label=f"teacher {run.name}",
        on_point=on_point,
        validate=partial(context.validate, input=teacher.input),
    )


def teacher_phase(run: TeacherRun, teacher: Tapped, method: Method[Any]) -> Phase:
    """The one phase of learning labels: of the whole network, or of its classifier."""
    (phase,) = method.phases(teacher)
    if run.cfg.train.part == "all":
        return phase
    return Phase(phase.name, phase.loss, (teacher.net.get_submodule(teacher.classifier),))
