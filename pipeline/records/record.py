"""What a stage did, as a small JSON file."""

import json
import os
import platform
import resource
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.files import atomic_file
from pipeline.records.energy import Energy, metered, other_accelerator
from pipeline.records.place import here
from pipeline.settings import InputError

SCHEMA = 3  # of the fields below, and of the keys of `details`
Curves = dict[str, list[float]]  # column -> one value for each point


@dataclass
class Result:
    """What a function of the library returns; its stage adds this to the record."""

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curves] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)  # hashes of the code and of what the function read
    outputs: dict[str, str] = field(default_factory=dict)  # hashes of what it wrote


@dataclass
class Record:
    """What a stage did, when, with which settings and on what machine."""

    stage: str
    name: str
    params: dict[str, Any]
    schema: int = SCHEMA
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curves] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        self.metrics.update(result.metrics)
        self.curves.update(result.curves)
        self.details.update(result.details)
        self.inputs.update(result.inputs)
        self.outputs.update(result.outputs)


@contextmanager
def recording(
    path: Path, stage: str, name: str, params: dict[str, Any], *, write: bool = True
) -> Iterator[Record]:
    """Yield a record to fill while a stage works. It is written if the stage ends well.

    Of several processes, only the one with `write` writes it.
    """
    record, start, computed = Record(stage, name, params), datetime.now(UTC), _cpu_seconds()
    with metered() if write else nullcontext(Energy()) as energy:
        yield record
    end = datetime.now(UTC)
    record.started, record.finished = (moment.isoformat(timespec="milliseconds") for moment in (start, end))
    record.seconds = round((end - start).total_seconds(), 3)
    record.environment |= environment()
    if (place := here()) and place.planned is not None:
        record.details["planned_seconds"] = round(place.planned, 1)
    if energy.joules:
        record.details["energy_j"] = energy.joules
    if energy.complete:
        record.metrics["energy_j"] = round(sum(energy.joules.values()), 1)
    if write:
        used = {"cpu_s": round(_cpu_seconds() - computed, 2), "memory_mb": _peak_memory_mb()}
        record.details["usage"] = used
        with atomic_file(path) as file:
            file.write_text(json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")


def _cpu_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_memory_mb() -> int:
    """The largest that this process had, which may be more than it needed in this stage."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def load_record(path: Path) -> Record:
    """A record that `recording` wrote. Those of another schema are refused."""
    record = Record(**json.loads(path.read_text()))
    if record.schema != SCHEMA:
        named = record.name if record.name != record.stage else None
        raise InputError(
            f"{path}: this record has schema {record.schema}, but schema {SCHEMA} is needed. "
            f"{write_again(target(record.stage, named))}"
        )
    return record


def target(stage: str, name: str | None = None) -> str:
    """What DVC calls a stage, or the part of a stage that makes one run or teacher."""
    return f"{stage}@{name}" if name else stage


def write_again(target: str) -> str:
    """What to do about a record that cannot be used."""
    return f"Run `dvc repro -f -s {target}` to write it again."


def write_metrics(path: Path, metrics: dict[str, float], *, digits: int) -> None:
    """A small JSON file for `dvc metrics show`."""
    with atomic_file(path) as file:
        rounded = {key: round(value, digits) for key, value in metrics.items()}
        file.write_text(json.dumps(rounded, indent=1) + "\n")


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": sys.platform,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # as launchers set it
        "device": _device(),
    } | _versions()


def _device() -> str:
    """The device that computed: the CPU if torch was not loaded."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return other_accelerator() or "cpu"


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
