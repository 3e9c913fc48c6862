"""TorchScript: a frozen trace, for services that still need it.

torch has deprecated the format, and loading such a file runs code from it.
"""

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.export.deployable import Deployable, Predict


def write(model: Deployable, path: Path, *, size: int, channels: int, metadata: Mapping[str, Any]) -> None:
    """Trace, freeze and write `model`.

    A trace silently keeps only one way of each Python branch. So the network must have been exported to ONNX
    before, which refuses such branches.
    """
    example = torch.zeros((2, size, size, channels), dtype=torch.uint8)
    buffer = io.BytesIO()
    with _deprecated(), torch.no_grad():
        trace = torch.jit.trace(model, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(trace)
        torch.jit.save(frozen, buffer, _extra_files={"metadata.json": json.dumps(metadata, sort_keys=True)})
    with zipfile.ZipFile(buffer) as full, zipfile.ZipFile(path, "w") as clean:
        for entry in full.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # holds absolute paths of this machine
                clean.writestr(zipfile.ZipInfo(entry.filename), full.read(entry))


def load(path: Path) -> Predict:
    """The file as a callable, on the CPU."""
    with _deprecated():
        script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, probabilities = script(torch.tensor(images))
        return logits.numpy(), probabilities.numpy()

    return run


@contextlib.contextmanager
def _deprecated() -> Iterator[None]:
    """Hide torch's warnings: at every call that the format is deprecated, and about constants in a trace."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
