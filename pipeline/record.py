"""What a stage did, as a small JSON file: the truth that reports and the tracking store are built from."""

import hashlib
import json
import os
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.checkpoint import atomic_file
from pipeline.energy import Energy, metered

SCHEMA = 1


@dataclass
class Record:
    stage: str
    name: str
    params: dict[str, Any]
    schema: int = SCHEMA
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@contextmanager
def record(path: Path, stage: str, name: str, params: dict[str, Any], *, write: bool = True) -> Iterator[Record]:
    """A record to fill while a stage works; written when the stage ends well (by one process: `write`)."""
    kept, start = Record(stage, name, params), datetime.now(UTC)
    with metered() if write else nullcontext(Energy()) as energy:
        yield kept
    end = datetime.now(UTC)
    kept.started, kept.finished = start.isoformat(timespec="milliseconds"), end.isoformat(timespec="milliseconds")
    kept.seconds = round((end - start).total_seconds(), 3)
    kept.environment |= environment()
    if energy.joules:
        kept.details["energy_j"] = energy.joules
    if energy.whole:
        kept.metrics["energy_j"] = round(sum(energy.joules.values()), 1)
    if write:
        with atomic_file(path) as file:
            file.write_text(json.dumps(asdict(kept), indent=1, allow_nan=False) + "\n")


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": sys.platform,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": _device(),
    } | _versions()


def _device() -> str:
    """What trained, where something did. Whoever hasn't loaded torch had nothing but the CPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    kind = torch.accelerator.current_accelerator()
    return kind.type if kind and kind.type != "cuda" and torch.accelerator.is_available() else "cpu"


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Of a file, or of all files below a folder with their names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
