"""A teacher, fine-tuned on the whole training split."""

from pathlib import Path

import torch

from pipeline import methods
from pipeline.checkpoint import save_network
from pipeline.files import atomic_folder, sha256
from pipeline.nets.start import load_start
from pipeline.records.progress import OnPoint
from pipeline.records.record import Result
from pipeline.runs.context import Context
from pipeline.runs.phase import Trainee, train_phase
from pipeline.runs.run import TeacherRun
from pipeline.runs.work_folder import work_folder

SEED = 0


def train_teacher(
    run: TeacherRun, *, data: Path, out: Path, work: Path, code: str, on_point: OnPoint
) -> Result:
    """`code` is the hash of this stage's code: an unfinished training with other code is not continued."""
    context = Context.of_teacher(data, run.protocol, run.augment)
    result = Result(
        inputs={"data": context.store.content, "code": code}, details={"subset": context.describe_subset()}
    )
    depends = {"settings": run.settings, "inputs": result.inputs, "classes": context.subset.classes}
    with work_folder(work, "teacher", run.name, depends, is_main=context.is_main) as folder:
        torch.manual_seed(SEED)
        net = context.build_network(run.net)
        load_start(net, run.start, name=run.net.net, field=f"teachers.{run.name}.start")
        teacher = context.tap(net, run.net.taps)
        method = context.build_method(methods.load("ce").Config(name="ce"), teacher, None)
        (phase,) = method.phases(teacher)
        result.curves["teacher"] = train_phase(
            context,
            Trainee(SEED, teacher, None, method),
            phase,
            run.train,
            validate=context.validate,
            folder=folder,
            curve="teacher",
            label=f"teacher {run.name}",
            on_point=on_point,
        )
        result.metrics = context.validate(teacher.net)
        if context.is_main:
            facts = {"net": run.net.net, "taps": teacher.taps} | context.facts | result.metrics
            with atomic_folder(out) as filled:
                save_network(filled, teacher.net.state_dict(), facts)
            result.outputs["teacher"] = sha256(out)
    return result
