"""What `train.precision: auto` stands for here: measured once for a device and its networks.

The choice is kept in the work folder, `precision/<key>.json`. So it is the same for all runs, seeds and
phases with these networks and this batch. A copy lies in the work folder of a stage, so that a stopped stage
goes on as it began.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.device import name_of
from pipeline.files import atomic_file, locked
from pipeline.runs.context import Context
from pipeline.runs.precision_trial import PLAIN, Setting, choose, measure
from pipeline.runs.work_folder import PRECISIONS
from pipeline.taps import processes
from pipeline.taps.tapped import Tapped
from pipeline.training.recipe import TrainConfig


@dataclass(frozen=True)
class Choice:
    precision: str
    channels_last: bool
    device: str
    ratios: dict[str, float]  # of the time of a step to that in fp32, by setting

    @property
    def setting(self) -> Setting:
        return Setting(self.precision, self.channels_last)


def settled(
    context: Context,
    student: Tapped,
    teacher: Tapped | None,
    cfg: TrainConfig,
    *,
    work: Path,
    begun: Path | None = None,
    label: str = "",
) -> tuple[TrainConfig, dict[str, Any]]:
    """`cfg` with a precision in place of auto, and what to put on record about that.

    `begun` is the file in which an unfinished stage keeps the choice that it began with.
    """
    if cfg.precision != "auto":
        return cfg, {}
    found = None
    if context.is_main:
        own = _read(begun) if begun else None
        found = own or _of_project(context, student, teacher, cfg, work / PRECISIONS)
        if begun and not own:
            _write(begun, found)
    choice = processes.of_first(found)
    assert choice is not None
    if label and context.is_main:
        print(f"{label}: {_told(choice)}", flush=True)
    facts = asdict(choice)
    setting = {key: facts[key] for key in ("precision", "channels_last")}
    return cfg.model_copy(update=setting), facts


def _told(choice: Choice) -> str:
    gain = choice.ratios[str(choice.setting)]
    faster = f", in {gain:.2f} of the time of fp32" if choice.setting != PLAIN else ""
    return f"precision auto is {choice.setting} here{faster}"


def _of_project(
    context: Context, student: Tapped, teacher: Tapped | None, cfg: TrainConfig, folder: Path
) -> Choice:
    """What an earlier training of these networks took, or what is measured now."""
    batch = max(2, cfg.batch_size // context.accelerator.num_processes // cfg.accumulate)
    depends = _depends_on(context, student, teacher, batch)
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    with locked(folder / f"{key}.lock"):
        if choice := _read(folder / f"{key}.json"):
            return choice
        channels, device = context.store.channels, context.device
        seconds = measure(student, teacher, channels=channels, batch=batch, device=device)
        setting, ratios = choose(seconds)
        choice = Choice(setting.precision, setting.channels_last, depends["device"], ratios)
        _write(folder / f"{key}.json", choice)
    return choice


def _depends_on(context: Context, student: Tapped, teacher: Tapped | None, batch: int) -> dict[str, Any]:
    """What decides how long a step takes."""
    return {
        "device": name_of(context.device),
        "torch": torch.__version__,
        "processes": context.accelerator.num_processes,
        "batch": batch,
        "networks": [_form(each) for each in (student, teacher) if each is not None],
    }


def _form(network: Tapped) -> list[Any]:
    """Of a network, all but its weights."""
    shapes = [(name, list(tensor.shape)) for name, tensor in network.net.state_dict().items()]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
    return [type(network.net).__name__, digest, network.input.size]


def _read(file: Path) -> Choice | None:
    try:
        return Choice(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # there is none, or it is damaged
        return None


def _write(file: Path, choice: Choice) -> None:
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(asdict(choice), indent=1) + "\n")
