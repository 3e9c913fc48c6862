"""What stored answers depend on. Answers with another key are never read."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pipeline import data, taps
from pipeline.data.batches import Batches
from pipeline.runs.context import Context
from pipeline.taps.tapped import Tapped


def depends_on(context: Context, teacher: Tapped, batches: Batches, precision: str) -> dict[str, Any]:
    """The teacher's weights and code, what it is shown, and in which precision it computes."""
    rows = (batches.subset.rows, batches.subset.unlabelled)
    mixed = [each.tobytes() for each in rows] if context.augment.is_mixed else []
    return {
        "net": type(teacher.net).__name__,
        "weights": _digest(_bytes_of(teacher.net)),
        "taps": teacher.taps,
        "classifier": teacher.classifier,
        "input": teacher.input.as_facts(),
        "code": _digest(file.read_bytes() for file in _files(teacher.net)),
        "torch": torch.__version__,
        "data": context.store.content,
        "augment": context.augment.of_views,
        "partners": _digest(mixed),  # mixup and cutmix mix images of the train subset
        "precision": precision,
    }


def key_of(depends: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def _bytes_of(net: torch.nn.Module) -> Iterable[bytes]:
    for name, tensor in sorted(net.state_dict().items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _files(net: torch.nn.Module) -> list[Path]:
    """The code that makes views and answers: room `data`, and what lies beside the classes of the network."""
    folders = {Path(inspect.getfile(type(module))).parent for module in net.modules()}
    folders.add(Path(data.__path__[0]))
    files = {file for folder in folders for file in folder.glob("*.py")} | {Path(taps.__file__)}
    return sorted(files, key=lambda file: (file.parent.name, file.name))
