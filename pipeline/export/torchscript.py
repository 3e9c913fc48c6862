"""TorchScript: a frozen trace, for those who still ask for it. torch has deprecated the format; loading such a file runs code from it."""

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.export.deployable import Deployable


def write(model: Deployable, path: Path, *, size: int, channels: int, metadata: Mapping[str, Any]) -> None:
    """Trace, freeze and write `model`. A trace bakes in Python branches silently, so only a network that ONNX took is given here."""
    example = torch.zeros((2, size, size, channels), dtype=torch.uint8)
    buffer = io.BytesIO()
    with _deprecated(), torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.trace(model, (example,), check_trace=False))
        torch.jit.save(frozen, buffer, _extra_files={"metadata.json": json.dumps(metadata, sort_keys=True)})
    with zipfile.ZipFile(buffer) as full, zipfile.ZipFile(path, "w") as clean:
        for entry in full.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # source lines with absolute paths of this machine
                clean.writestr(zipfile.ZipInfo(entry.filename), full.read(entry))


def load(path: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The file as a callable: uint8 images N x H x W x C to (logits, probabilities), on the CPU."""
    with _deprecated():
        script = torch.jit.load(str(path), map_location="cpu")

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, probabilities = script(torch.tensor(images))
        return logits.numpy(), probabilities.numpy()

    return run


@contextlib.contextmanager
def _deprecated() -> Iterator[None]:
    """torch warns at each of these calls that the format is deprecated, and at each constant and Python number that a trace holds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
