"""Can a network be exported at all? This is tried before hours go into training it."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.export import onnx_format
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.settings import InputError


def try_export(net: nn.Module, *, name: str, size: int, channels: int, classes: int) -> None:
    """Export the untrained `net` and run the file with another batch size.

    An InputError says which part of it cannot be exported.
    """
    model = Deployable(net.eval(), (0.5,) * channels, (0.25,) * channels).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    want = _logits(model, images, name, classes)
    exported = Deployable(plain_pools(copy.deepcopy(net)), model.mean.tolist(), model.std.tolist())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        try:
            onnx_format.write(exported, path, size=size, channels=channels, classes=classes, metadata={})
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        got = onnx_format.load(path)(images)[0]
    if not np.allclose(got, want, rtol=0, atol=1e-3 * max(float(np.abs(want).max()), 1e-6)):
        raise InputError(
            f"{name}: for 3 images its ONNX file gives another answer than the network. "
            "Look for layers that depend on the batch."
        )


def _logits(model: Deployable, images: np.ndarray, name: str, classes: int) -> np.ndarray:
    """The network's own answer to three images, in two batches."""
    try:
        with torch.no_grad():
            logits = np.concatenate([model.predict(images[:2]), model.predict(images[2:])])
    except Exception as error:  # the network's code may be anybody's and raise anything
        shape = " x ".join(map(str, images.shape[1:]))
        raise InputError(f"{name} cannot take images of {shape}: {type(error).__name__}: {error}") from error
    if logits.shape != (3, classes):
        raise InputError(
            f"{name} gives {list(logits.shape)} for 3 images where {[3, classes]} is needed: "
            "one number for each class of the data."
        )
    return logits
