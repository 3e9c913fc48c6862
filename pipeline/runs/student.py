"""The students of a run, seed by seed: first the early phases of its method, then the last one."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import load_facts, load_network_weights, load_weights, save_network, save_weights
from pipeline.data.protocol import class_sets
from pipeline.device import fix_workspace
from pipeline.files import atomic_folder, sha256
from pipeline.methods import Method, Phase
from pipeline.records.progress import OnPoint
from pipeline.records.record import Result
from pipeline.runs.context import Context
from pipeline.runs.embedding import image_weights, nearest_mean
from pipeline.runs.knowledge import recall_knowledge
from pipeline.runs.overview import overview, table
from pipeline.runs.phase import Trained, Trainee, check_phases, train_phase
from pipeline.runs.run import Run
from pipeline.runs.start_network import start_network
from pipeline.runs.work_folder import work_folder
from pipeline.settings import InputError
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import Validate

METHOD = "method.safetensors"  # the method's own weights beside those of an initial student


def pretrain(
    run: Run, *, data: Path, teacher: Path, out: Path, work: Path, code: str, on_point: OnPoint
) -> Result:
    """All phases of the run's method but the last. If it has one phase only: the seeded initial students."""
    fix_workspace(asked=run.is_deterministic)
    context = Context.of_students(data, run.protocol, run.augment)
    result = _begin(context, code, teacher=teacher)
    depends = {"settings": run.settings, "inputs": result.inputs}
    with work_folder(work, "pretrain", run.name, depends, is_main=context.is_main) as folder:
        for trainee, early, _ in _trainees(context, run, teacher, None):
            if trainee.seed == run.seeds[0]:
                result.details["overview"] = _overview(context, trainee)
            for phase in early:
                judge = partial(nearest_mean, context, trainee.student)
                validate = judge if phase.embedding == "chosen" else None
                _train(context, run, trainee, phase, folder, on_point, validate=validate).add_to(
                    result, _curve(trainee, phase)
                )
                if phase.embedding:
                    _add_scores(result, trainee.seed, judge(trainee.student.net))
            if trainee.seed == run.seeds[0]:
                seen, _ = class_sets(context.store.classes, run.protocol)
                if weights := image_weights(context, trainee, seen):
                    result.details["image_weights"] = weights
            if context.is_main:
                trained = folder / "out" / f"seed-{trainee.seed}"
                _save(trained, context, run, trainee)
                save_weights(trained / METHOD, trainee.method.state_dict())
        _add_means(result, run.seeds)
        if context.is_main:
            result.outputs["student"] = _finish(folder / "out", out)
    return result


def distill(
    run: Run, *, data: Path, teacher: Path, initial: Path, out: Path, work: Path, code: str, on_point: OnPoint
) -> Result:
    """The last phase of the run's method, from what `pretrain` made; each student is chosen on validation."""
    fix_workspace(asked=run.is_deterministic)
    context = Context.of_students(data, run.protocol, run.augment)
    result = _begin(context, code, teacher=teacher, initial=initial)
    depends = {"settings": run.settings, "inputs": result.inputs}
    with work_folder(work, "distill", run.name, depends, is_main=context.is_main) as folder:
        for trainee, early, last in _trainees(context, run, teacher, initial):
            if not any(_sees_unlabelled(run, phase) for phase in (*early, last)):
                result.details["subset"]["unlabelled"] = 0
            seed, student, select = trainee.seed, trainee.student, run.training(last.name).select
            if seed == run.seeds[0]:
                result.details |= {"overview": _overview(context, trainee), "select": select}
            validate = partial(context.validate, input=student.input)
            _train(context, run, trainee, last, folder, on_point, validate=validate).add_to(
                result, _curve(trainee, last)
            )
            scores = validate(student.net)
            _add_scores(result, seed, scores)
            if context.is_main:
                _save(folder / "out" / f"seed-{seed}", context, run, trainee, select=select, **scores)
        _add_means(result, run.seeds)
        if context.is_main:
            result.outputs["student"] = _finish(folder / "out", out)
    return result


def build_student(
    context: Context, run: Run, seed: int, teacher: Tapped, initial: Path | None = None
) -> tuple[Tapped, Method[Any]]:
    """The student of a seed and the run's method: as they start, or as `pretrain` saved them in `initial`."""
    torch.manual_seed(seed)
    net, field = context.build_network(run.student), f"students.{run.student_name}"
    input = context.input_of(run.student, run.student.start.source, field)
    if initial is None:
        loaded = start_network(context, net, run.student.net, run.student.start, field)
    else:
        loaded = load_facts(initial / f"seed-{seed}")["loaded"]
    student = context.tap(net, run.student.taps, input, loaded)
    method = context.build_method(run.method, student, teacher, run.partner)
    if context.is_cross_task and any(name == "logits" for _, name in method.matched()):
        raise InputError(
            f"runs.{run.name}.method matches the teacher's logits, but with protocol.class_overlap teacher "
            "and student have different classes. Set kd_weight to 0, choose a method that reads no logits, "
            "such as refilled, or set class_overlap to all."
        )
    if initial is not None:
        load_initial(initial / f"seed-{seed}", student, method)
    return student, method


def load_initial(folder: Path, student: Tapped, method: Method[Any]) -> None:
    """Load the weights of a seed's student and method that `pretrain` saved."""
    student.net.load_state_dict(load_network_weights(folder))
    method.load_state_dict(load_weights(folder / METHOD))


def _add_scores(result: Result, seed: int, scores: Mapping[str, float]) -> None:
    result.metrics |= {f"{name}/seed-{seed}": value for name, value in scores.items()}


def _add_means(result: Result, seeds: Sequence[int]) -> None:
    """Beside each score of the seeds, its mean over them."""
    for name in dict.fromkeys(key.rpartition("/seed-")[0] for key in list(result.metrics)):
        of_seeds = [result.metrics[f"{name}/seed-{seed}"] for seed in seeds]
        result.metrics[name] = sum(of_seeds) / len(of_seeds)


def _sees_unlabelled(run: Run, phase: Phase) -> bool:
    return not phase.needs_labels and run.training(phase.name).unlabelled_share > 0


def _begin(context: Context, code: str, **folders: Path) -> Result:
    inputs = {"data": context.store.content} | {name: sha256(folder) for name, folder in folders.items()}
    return Result(inputs=inputs | {"code": code}, details={"subset": context.describe_subset()})


def _trainees(
    context: Context, run: Run, teacher: Path, initial: Path | None
) -> Iterator[tuple[Trainee, list[Phase], Phase]]:
    """For each seed: the student and its method, the early phases it needs, and the last phase.

    The next seed starts when all processes are done with this one.
    """
    teacher_net = context.load_network(teacher)
    for seed in run.seeds:
        student, method = build_student(context, run, seed, teacher_net, initial)
        *early, last = check_phases(method.phases(student), run.phases, f"runs.{run.name}.phases")
        learned = recall_knowledge(teacher, method, run)
        needed = [phase for phase in early if phase.name not in learned]
        yield Trainee(seed, student, teacher_net, method), needed, last
        context.accelerator.wait_for_everyone()


def _overview(context: Context, trainee: Trainee) -> list[list[str]]:
    """What both networks output and what the method matches, printed before the first step."""
    with in_eval_mode(trainee.student.net):
        probe = context.probe(trainee.student, trainee.teacher)
        rows = overview(probe.student, probe.teacher, trainee.method.matched())
    if context.is_main:
        print(table(rows), flush=True)
    return rows


def _train(
    context: Context,
    run: Run,
    trainee: Trainee,
    phase: Phase,
    folder: Path,
    on_point: OnPoint,
    *,
    validate: Validate | None,
) -> Trained:
    seed = trainee.seed
    which = f" ({run.seeds.index(seed) + 1} of {len(run.seeds)})" if len(run.seeds) > 1 else ""
    return train_phase(
        context,
        trainee,
        phase,
        run.training(phase.name),
        validate=validate,
        folder=folder / f"seed-{seed}",
        stage=folder,
        curve=_curve(trainee, phase),
        label=f"{run.name} seed {seed}{which} {phase.name}",
        on_point=on_point,
    )


def _curve(trainee: Trainee, phase: Phase) -> str:
    return f"{phase.name}/seed-{trainee.seed}"


def _save(folder: Path, context: Context, run: Run, trainee: Trainee, **scores: Any) -> None:
    student = trainee.student
    facts = {"net": run.student.net, "seed": trainee.seed} | context.facts(student) | scores
    save_network(folder, student.net.state_dict(), facts)


def _finish(trained: Path, out: Path) -> str:
    """Copy all students to `out`; the hash of what is there."""
    with atomic_folder(out) as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
    return sha256(out)
