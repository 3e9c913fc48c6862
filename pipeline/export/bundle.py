"""The folder that is handed out: the student in each format, and a file that says what it is."""

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator
from torch import nn

from pipeline.export import onnx_format, parity, torchscript
from pipeline.export.deployable import Deployable
from pipeline.inputs import Settings

SCHEMA = 1
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ExportConfig(Settings):
    formats: tuple[Literal["onnx", "torchscript"], ...] = ("onnx", "torchscript")
    parity_images: int = Field(256, ge=2)

    @field_validator("formats")
    @classmethod
    def _with_onnx(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if "onnx" not in formats:
            raise ValueError(
                "must hold 'onnx': it is what is measured, and its exporter is what refuses a network that can't be exported faithfully"
            )
        return formats


def export(
    net: nn.Module,
    *,
    out: Path,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    channels: int,
    images: np.ndarray,
    facts: Mapping[str, Any],
    cfg: ExportConfig,
) -> dict[str, Any]:
    """Write the bundle of `net` (evaluation mode, on the CPU) into `out` and return what its bundle.json says.

    `images` are real uint8 test images for the comparison; `facts` is what else the reader should know (metrics, hashes, parameters).
    """
    from safetensors.torch import save

    description = {
        "schema": SCHEMA,
        "classes": list(classes),
        "size": size,
        "channels": channels,
        "mean": [float(x) for x in mean],
        "std": [float(x) for x in std],
        "transform": transform(size, channels),
    }
    assert not any(module.training for module in net.modules()), "call .eval() first"
    trained = Deployable(net, mean, std)
    model = Deployable(_without_hooks(net), mean, std)
    parity.assert_still(model)
    images = images[: cfg.parity_images]
    out.mkdir(parents=True, exist_ok=True)
    formats: dict[str, dict[str, Any]] = {}

    path = out / "student.onnx"
    onnx_format.write(model, path, size=size, channels=channels, classes=len(classes), metadata=description)
    same = parity.check(trained.outputs, onnx_format.load(path), images, name="The ONNX file", exact=model.exact)
    formats["onnx"] = {"file": path.name, "opset": onnx_format.OPSET, "parity": asdict(same)}

    if "torchscript" in cfg.formats:
        path = out / "student.ts"
        torchscript.write(model, path, size=size, channels=channels, metadata=description)
        same = parity.check(trained.outputs, torchscript.load(path), images, name="The TorchScript file", exact=model.exact)
        formats["torchscript"] = {"file": path.name, "deprecated": True, "parity": asdict(same)}

    path = out / "student.safetensors"
    weights = {name: tensor.contiguous().clone() for name, tensor in model.net.state_dict().items()}
    path.write_bytes(save(weights))  # save_file's files are readable by their owner only
    formats["safetensors"] = {"file": path.name}

    parity.assert_still(model)
    files = {entry["file"]: _fingerprint(out / entry["file"]) for entry in formats.values()}
    bundle = {**description, "formats": formats, "files": files, "facts": dict(facts)}
    (out / "bundle.json").write_text(json.dumps(bundle, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return bundle


def transform(size: int, channels: int) -> dict[str, Any]:
    """What `data.decode` does to turn any picture into the graph's input, in words and in fields."""
    luma = " reduce to luma;" if channels == 1 else ""
    return {
        "words": (
            "Turn upright by EXIF, lay transparency on white, convert to RGB, crop the largest centred square, resize it to "
            f"{size} x {size} with PIL's bilinear filter (antialiased);{luma} give uint8 pixels N x {size} x {size} x {channels}. "
            "Scaling and normalisation happen inside the graph."
        ),
        "exif_transpose": True,
        "background": "white",
        "crop": "largest centred square",
        "size": size,
        "filter": "bilinear",
        "antialias": True,
        "mode": "RGB" if channels == 3 else "L",
    }


def _without_hooks(net: nn.Module) -> nn.Module:
    """A copy. Hooks hold what they saw, which can't be copied, and would run inside the exporter; those of `net` itself stay."""
    kept = [(module, name, getattr(module, name)) for module in net.modules() for name in HOOKS]
    try:
        for module, name, _ in kept:
            setattr(module, name, OrderedDict())
        twin = copy.deepcopy(net)
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)
    return twin.eval().requires_grad_(False)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
