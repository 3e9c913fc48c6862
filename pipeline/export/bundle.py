"""The folder that is handed out: the student in each format, and what says what it is and proves it."""

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from pipeline.deploy import bundle as reader
from pipeline.deploy import page
from pipeline.deploy.bundle import sealed
from pipeline.deploy.verify import passed, verify
from pipeline.export import card, int8, latency, machine, onnx_format, parity, pt2, torchscript
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.export.int8 import Int8Config
from pipeline.inputs import InputError, Settings

SCHEMA = 2
OUTPUTS = ("logits", "probabilities")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GOLDEN = 12  # images whose answers travel with the bundle


class ExportConfig(Settings):
    formats: tuple[Literal["onnx", "int8", "torchscript", "pt2"], ...] = ("onnx", "int8", "torchscript")
    parity_images: int = Field(256, ge=2)
    int8: Int8Config = Int8Config()
    max_latency_ms: float = Field(0.0, ge=0, description="an image on one thread, by the fastest ONNX file; 0: whatever it takes")
    max_size_mb: float = Field(0.0, ge=0, description="of that file; 0: whatever it takes")

    @field_validator("formats")
    @classmethod
    def _with_onnx(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if "onnx" not in formats:
            raise ValueError(
                "must hold 'onnx': it is what is measured, and its exporter is what refuses a network that can't be exported faithfully"
            )
        return formats


class BudgetError(InputError):
    """The student is slower or larger than it may be."""


@dataclass(frozen=True)
class Labelled:
    """uint8 images N x H x W x C, which may be mapped from disk, and their classes."""

    images: np.ndarray
    labels: np.ndarray


def export(
    net: nn.Module,
    *,
    out: Path,
    name: str,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    training: np.ndarray,
    validation: Labelled,
    test: Labelled,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    cfg: ExportConfig,
) -> dict[str, Any]:
    """Write the bundle of `net` (evaluation mode, on the CPU) into `out` and return what its bundle.json says.

    int8 takes its ranges from `training` images and is accepted on `validation`; `test` is what is compared and reported.
    """
    from safetensors.torch import save

    _, size, _, channels = test.images.shape
    description = {
        "schema": SCHEMA,
        "classes": list(classes),
        "input": {"size": size, "channels": channels, "dtype": "uint8", "layout": "NHWC"},
        "transform": transform(size, channels),
        "mean": [float(x) for x in mean],
        "std": [float(x) for x in std],
        "outputs": list(OUTPUTS),
    }
    assert not any(module.training for module in net.modules()), "call .eval() first"
    trained = Deployable(net, mean, std)
    model = Deployable(plain_pools(_without_hooks(net)), mean, std)
    parity.assert_still(model)
    images = np.asarray(test.images[: cfg.parity_images])
    out.mkdir(parents=True, exist_ok=True)
    formats: dict[str, dict[str, Any]] = {}
    runs: dict[str, parity.Predict] = {}

    def add(form: str, path: Path, what: str, run: parity.Predict, **told: Any) -> parity.Parity:
        same = parity.check(trained.outputs, run, images, name=what, exact=model.exact)
        formats[form] = {"file": path.name, **told, "parity": asdict(same)}
        runs[form] = run
        return same

    float_file = out / "student.onnx"
    onnx_format.write(model, float_file, size=size, channels=channels, classes=len(classes), metadata=description)
    same = add("onnx", float_file, "The ONNX file", onnx_format.load(float_file), opset=onnx_format.OPSET)

    if "int8" in cfg.formats:
        quantized = _int8(float_file, description, training, validation, test, cfg.int8)
        formats["int8"] = quantized
        if quantized["accepted"]:
            runs["int8"] = onnx_format.load(out / quantized["file"])
    if "torchscript" in cfg.formats:
        path = out / "student.ts"
        torchscript.write(model, path, size=size, channels=channels, metadata=description)
        add("torchscript", path, "The TorchScript file", torchscript.load(path), deprecated=True)
    if "pt2" in cfg.formats:
        path = out / "student.pt2"
        pt2.write(model, path, size=size, channels=channels, metadata=description)
        add("pt2", path, "The torch.export file", pt2.load(path))

    path = out / "student.safetensors"
    weights = {key: tensor.contiguous().clone() for key, tensor in model.net.state_dict().items()}
    path.write_bytes(save(weights))  # save_file's files are readable by their owner only
    formats["safetensors"] = {"file": path.name}
    parity.assert_still(model)

    _golden(out / "golden.npz", test.images, trained, runs.get("int8"))
    milliseconds = latency.measure(runs, np.ascontiguousarray(images[:1]))
    _keep_budgets(cfg, milliseconds, {form: (out / formats[form]["file"]).stat().st_size for form in runs})

    bundle: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        **description,
        "max_batch": same.largest_batch,
        "formats": formats,
        "metrics": dict(metrics),
        "latency": {"threads": 1, "batch": 1, "median_ms": milliseconds},
        "provenance": dict(provenance),
        "versions": machine.versions(),
        "cpu": machine.cpu(),
    }
    page.write(bundle, out / "student.html")
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    (out / "README.md").write_text(card.text(bundle, files), encoding="utf-8")
    bundle["files"] = {file.name: _fingerprint(file) for file in sorted(out.iterdir())}
    text = sealed(bundle)
    (out / "bundle.json").write_text(text, encoding="utf-8", newline="\n")
    if not passed(checks := verify(out)):
        raise parity.ParityError(f"A predictor would refuse the bundle: {checks[-1].what}: {checks[-1].says}")
    return json.loads(text)


def transform(size: int, channels: int) -> dict[str, Any]:
    """What `data.decode` does to turn any picture into the graph's input, in words and in the fields a predictor reads."""
    luma = " reduce to luma;" if channels == 1 else ""
    return {
        "words": (
            "Turn upright by EXIF, lay transparency on white, convert to RGB, crop the largest centred square, resize it to "
            f"{size} x {size} with PIL's bilinear filter (antialiased);{luma} give uint8 pixels N x {size} x {size} x {channels}. "
            "Scaling and normalisation happen inside the graph."
        ),
        **reader.transform(size, channels),
    }


def _int8(
    source: Path, description: Mapping[str, Any], training: np.ndarray, validation: Labelled, test: Labelled, cfg: Int8Config
) -> dict[str, Any]:
    """Quantize, and decide on validation images whether the file is good enough; a refused one is kept under another name."""
    path, calibration = source.with_name("student.int8.onnx"), np.asarray(training[: cfg.images])
    threads = torch.get_num_threads()
    float_run = onnx_format.load(source, threads=threads)
    for float_first in (False, True):  # the faster file, unless only the other one is good enough
        int8.write(source, path, calibration, portable=cfg.portable, metadata=description, float_first=float_first)
        run = onnx_format.load(path, threads=threads)
        chosen_on = int8.compare(float_run, run, validation.images[: cfg.check], validation.labels[: cfg.check])
        refused = int8.faults(chosen_on, cfg) + int8.batch_faults(run, validation.images[:64])
        if not refused:
            break
    told_on = int8.compare(float_run, run, test.images[: cfg.check], test.labels[: cfg.check])
    if refused and cfg.required:
        raise int8.Int8Error(
            f"The int8 student isn't good enough: {'; '.join(refused)} (on {chosen_on.images} validation images). Train the student "
            "longer, give export.int8.images more images, loosen the gate, or let the float student ship alone: "
            "export.int8.required: false."
        )
    if refused:
        path = path.rename(path.with_name(path.name + ".rejected"))
    return {
        "file": path.name,
        "accepted": not refused,
        "refused": refused,
        "portable": cfg.portable,
        "float_first": float_first,
        "calibration_images": len(calibration),
        "quality": asdict(chosen_on),
        "test": asdict(told_on),
    }


def _golden(path: Path, images: np.ndarray, trained: Deployable, quantized: parity.Predict | None) -> None:
    """A few real images and the answers to expect."""
    some = np.asarray(images[parity.spread(len(images), min(GOLDEN, len(images)))])
    if quantized is None:
        np.savez(path, images=some, logits_fp32=trained.predict(some))
    else:
        np.savez(path, images=some, logits_fp32=trained.predict(some), logits_int8=quantized(some)[0])


def _keep_budgets(cfg: ExportConfig, milliseconds: Mapping[str, float], sizes: Mapping[str, int]) -> None:
    form = min((form for form in ("onnx", "int8") if form in milliseconds), key=milliseconds.__getitem__)
    took, mb = milliseconds[form], sizes[form] / 1e6
    if cfg.max_latency_ms and took > cfg.max_latency_ms:
        raise BudgetError(
            f"export.max_latency_ms: the student's fastest file ({form}) takes {took:.3g} ms an image on one thread here, "
            f"{cfg.max_latency_ms:g} ms are allowed. Choose a smaller student net or allow more."
        )
    if cfg.max_size_mb and mb > cfg.max_size_mb:
        raise BudgetError(
            f"export.max_size_mb: the student's fastest file ({form}) has {mb:.3g} MB, {cfg.max_size_mb:g} MB are allowed. "
            "Choose a smaller student net or allow more."
        )


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
