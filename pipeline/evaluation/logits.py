"""Logits for test images, on the device. A teacher's are computed once and kept for all its runs.

They are a cache in the work folder, `evaluated/<key>.npz`, and no output of a stage. Which test images a
teacher answers to depends on the run (on its classes), and stage `teacher` must not read the test split. The
key is a hash of all that the logits depend on, so old ones are never read, and the folder can be deleted.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import data, functional
from pipeline.checkpoint import code_of, digest, load_network, weights_of
from pipeline.data.seen import Seen
from pipeline.data.store import Store
from pipeline.device import best_device, name_of, products
from pipeline.evaluation import scores
from pipeline.evaluation.scores import logits_of
from pipeline.export import deployable
from pipeline.export.deployable import Deployable
from pipeline.files import atomic_file, locked
from pipeline.functional import Input

EVALUATED = "evaluated"  # the folder below the work folder
CODE = (data.__path__[0], functional.__file__, scores.__file__, deployable.__file__)


def logits_for(
    store: Store, folder: Path, rows: np.ndarray, *, device: torch.device | None = None
) -> np.ndarray:
    """What the network in `folder` answers to these rows of the store."""
    net, facts = load_network(folder)
    return _compute(store, net, Input.from_facts(facts["input"]), rows, device or best_device())


def kept_logits(store: Store, folder: Path, rows: np.ndarray, *, work: Path) -> np.ndarray:
    """The same, from the work folder if they are there. Of several processes, one computes them."""
    net, facts = load_network(folder)
    device = best_device()
    depends = {
        "weights": digest(weights_of(net)),
        "code": digest(code_of(net, *map(Path, CODE))),
        "input": facts["input"],
        "data": store.content,
        "rows": digest([rows.astype(np.int64).tobytes()]),
        "device": name_of(device),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    file = work / EVALUATED / f"{key}.npz"
    with locked(file.with_suffix(".lock")):
        logits = _read(file)
        if logits is None:
            logits = _compute(store, net, Input.from_facts(facts["input"]), rows, device)
            with atomic_file(file) as partial, partial.open("wb") as stream:
                np.savez(stream, logits=logits)
    return logits


def _compute(
    store: Store, net: nn.Module, input: Input, rows: np.ndarray, device: torch.device
) -> np.ndarray:
    """In float32 without TF32, so that a GPU answers as a CPU does, up to rounding."""
    predict = Deployable(net, input.mean, input.std).to(device).predict
    with products(tf32=False):
        return logits_of(predict, Seen(store.images, input.size), rows, progress=True)


def _read(file: Path) -> np.ndarray | None:
    """The checksum of a zip file shows a damaged one."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            logits: Any = arrays["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return np.asarray(logits)
