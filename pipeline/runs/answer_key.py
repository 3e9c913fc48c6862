"""What stored answers depend on. Answers with another key are never read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pipeline import data, taps
from pipeline.checkpoint import code_of, digest, weights_of
from pipeline.data.batches import Batches
from pipeline.runs.context import Context
from pipeline.taps.answer import Frozen
from pipeline.taps.tapped import Tapped


def depends_on(context: Context, teacher: Tapped, batches: Batches, precision: str) -> dict[str, Any]:
    """The teacher's weights and code, what it is shown, and in which precision it computes."""
    rows = (batches.subset.rows, batches.subset.unlabelled)
    mixed = [each.tobytes() for each in rows] if context.augment.is_mixed else []
    return {
        "net": type(teacher.net).__name__,
        "weights": digest(weights_of(teacher.net)),
        "taps": teacher.taps,
        "classifier": teacher.classifier,
        "input": teacher.input.as_facts(),
        "code": digest(code_of(teacher.net, Path(data.__path__[0]), Path(taps.__file__))),
        "torch": torch.__version__,
        "data": context.store.content,
        "augment": context.augment.of_views,
        "partners": digest(mixed),  # mixup and cutmix mix images of the train subset
        "precision": precision,
    }


def key_of(depends: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def key_of_function(frozen: Frozen) -> str:
    """Its weights, its settings, and the code beside its class."""
    settings = repr(frozen.settings).encode()
    return digest([*weights_of(frozen.weights), settings, *code_of(frozen.weights)])
