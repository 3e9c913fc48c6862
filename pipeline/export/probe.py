"""Whether a network can be deployed at all, asked before hours go into training it."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.export import onnx_format
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.inputs import InputError


def probe(net: nn.Module, *, name: str, size: int, channels: int, classes: int) -> None:
    """Export the untrained `net` and run it at other batch sizes; an InputError names what in it can't be exported."""
    model = Deployable(net.eval(), (0.5,) * channels, (0.25,) * channels).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    try:
        with torch.no_grad():
            want = np.concatenate([model.predict(images[:2]), model.predict(images[2:])])
    except Exception as error:  # a person's code may raise anything
        raise InputError(f"{name} can't take images of {size} x {size} x {channels}: {type(error).__name__}: {error}") from error
    if want.shape != (3, classes):
        raise InputError(f"{name} gives {list(want.shape)} for 3 images where {[3, classes]} is needed: one number a class of the data.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        try:
            onnx_format.write(
                Deployable(plain_pools(copy.deepcopy(net)), model.mean.tolist(), model.std.tolist()),
                path,
                size=size,
                channels=channels,
                classes=classes,
                metadata={},
            )
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        got = onnx_format.load(path)(images)[0]
    if not np.allclose(got, want, rtol=0, atol=1e-3 * max(float(np.abs(want).max()), 1e-6)):
        raise InputError(
            f"{name}: its ONNX file answers differently for 3 images than the network. Look for layers that depend on the batch."
        )
