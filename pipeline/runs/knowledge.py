"""What a method learns from a teacher alone, once for many students: saved beside a copy of that teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint import load_facts, load_network_weights, load_weights, save_network, save_weights
from pipeline.device import fix_workspace
from pipeline.files import atomic_folder, sha256
from pipeline.methods import Method, Phase
from pipeline.methods._combined import Combined
from pipeline.records.progress import OnPoint
from pipeline.records.record import Result
from pipeline.runs.context import Context
from pipeline.runs.phase import Trainee, check_phases, train_phase
from pipeline.runs.run import KnowledgeRun, Run
from pipeline.runs.work_folder import work_folder
from pipeline.settings import InputError

KNOWLEDGE = "knowledge.safetensors"


def learn_knowledge(
    run: KnowledgeRun, *, data: Path, teacher: Path, out: Path, work: Path, code: str, on_point: OnPoint
) -> Result:
    """Train those phases of the method that read the teacher alone.

    Runs that name `out` as their teacher skip these phases.
    """
    fix_workspace(asked=run.is_deterministic)
    context = Context.of_students(data, run.protocol, run.augment)
    inputs = {"data": context.store.content, "teacher": sha256(teacher), "code": code}
    result = Result(inputs=inputs, details={"subset": context.describe_subset()})
    teacher_net = context.load_network(teacher)
    depends = {"settings": run.settings, "inputs": inputs}
    with work_folder(work, "knowledge", run.name, depends, is_main=context.is_main) as folder:
        torch.manual_seed(run.seed)
        placeholder = context.load_network(teacher)  # there is no student yet, and these phases read none
        method = context.build_method(run.method, placeholder, teacher_net)
        phases = phases_of_teacher(run, method.phases(placeholder))
        trainee = Trainee(run.seed, placeholder, teacher_net, method)
        learned: dict[str, Tensor] = {}
        for phase in phases:
            curve = f"{phase.name}/seed-{run.seed}"
            trained = train_phase(
                context,
                trainee,
                phase,
                run.training(phase.name),
                validate=None,
                folder=folder,
                stage=folder,
                curve=curve,
                label=f"knowledge {run.name} {phase.name}",
                on_point=on_point,
            )
            trained.add_to(result, curve)
            learned |= _trained_by(phase, method)
        if context.is_main:
            _save(out, teacher, method, phases, learned)
            result.outputs["knowledge"] = sha256(out)
    return result


def recall_knowledge(teacher: Path, method: Method[Any], run: Run) -> list[str]:
    """Load the teacher's knowledge for the method of `run`, and return the phases it replaces."""
    phases = phases_replaced(load_facts(teacher).get("knows", {}), method, run)
    if phases:
        _of_knowledge(method).load_state_dict(load_weights(teacher / KNOWLEDGE), strict=False)
    return phases


def phases_replaced(knows: Mapping[str, Any], method: Method[Any], run: Run) -> list[str]:
    """The phases that the knowledge of the run's teacher replaces.

    Refused where the run sets what the knowledge was learned with.
    """
    own = _of_knowledge(method).cfg.model_dump(mode="json")
    if knows.get("method") != own["name"]:
        return []
    for key, value in knows["settings"].items():
        if own[key] != value:
            raise InputError(
                f"runs.{run.name}.method.{key} is {own[key]!r}, but knowledge.{run.teacher} was learned with "
                f"{value!r}. Set it under knowledge.{run.teacher}.method only, or give the run the teacher "
                "without knowledge."
            )
    phases: list[str] = knows["phases"]
    for name in run.phases.keys() & set(phases):
        raise InputError(
            f"runs.{run.name}.phases.{name}: knowledge.{run.teacher} has learned this phase. Set it there."
        )
    return phases


def _of_knowledge(method: Method[Any]) -> Method[Any]:
    return method.main if isinstance(method, Combined) else method


def phases_of_teacher(run: KnowledgeRun, phases: list[Phase]) -> list[Phase]:
    found = [phase for phase in phases if phase.of_teacher]
    if not found:
        raise InputError(
            f"knowledge.{run.name}.method.name: no phase of {run.method.name} learns from the teacher alone. "
            f"Remove this entry, and let the runs name {run.teacher} as their teacher."
        )
    return check_phases(found, run.phases, f"knowledge.{run.name}.phases")


def _trained_by(phase: Phase, method: Method[Any]) -> dict[str, Tensor]:
    """The part of the method's state that a phase trains."""
    trained = {id(tensor) for module in phase.trains for tensor in (*module.parameters(), *module.buffers())}
    state = method.state_dict(keep_vars=True)
    return {key: tensor for key, tensor in state.items() if id(tensor) in trained}


def facts_of_knowledge(method: Method[Any], phases: list[Phase]) -> dict[str, Any]:
    """Which phases it replaces, and the settings that a run must have to use it."""
    settings = method.cfg.model_dump(mode="json")
    read = sorted({key for phase in phases for key in phase.of_teacher})
    return {
        "method": method.cfg.name,
        "phases": [phase.name for phase in phases],
        "settings": {key: settings[key] for key in read},
    }


def _save(
    out: Path, teacher: Path, method: Method[Any], phases: list[Phase], learned: dict[str, Tensor]
) -> None:
    """A copy of the teacher, what was learned, and what it is."""
    knows = facts_of_knowledge(method, phases)
    with atomic_folder(out) as filled:
        save_network(filled, load_network_weights(teacher), load_facts(teacher) | {"knows": knows})
        save_weights(filled / KNOWLEDGE, {key: tensor.detach() for key, tensor in learned.items()})
