"""The folder that is deployed: the student in each format, its description, and proof that it is right."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from pipeline.data.decode import BORDER, Square
from pipeline.data.images import Images
from pipeline.deploy import browser_page, read_bundle
from pipeline.deploy.read_bundle import SCHEMA, sealed
from pipeline.deploy.verify import passed, verify
from pipeline.export import (
    calibration,
    int8,
    latency,
    machine,
    model_card,
    onnx_format,
    parity,
    pt2,
    torchscript,
)
from pipeline.export.deployable import Deployable, Predict, in_batches, plain_pools
from pipeline.export.int8 import Int8Config
from pipeline.files import sha256
from pipeline.settings import InputError, Settings

OUTPUTS = ("logits", "probabilities")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GOLDEN = 12  # images in golden.npz
WORDS: dict[Square, str] = {  # for a person, how a picture becomes a square
    "crop": "crop the largest centred square",
    "squash": "take the whole picture, whatever its shape",
    "pad": f"keep the whole picture (a grey border, {BORDER}, added after the resizing, makes it square)",
}


class ExportConfig(Settings):
    formats: tuple[Literal["onnx", "int8", "torchscript", "pt2"], ...] = ("onnx", "int8", "torchscript")
    parity_images: int = Field(256, ge=2, description="test images on which every float file is compared")
    int8: Int8Config = Int8Config()
    calibrate_probabilities: bool = Field(
        False,
        description="divide the logits by a temperature, fitted on validation images, for the probabilities",
    )
    max_latency_ms: float = Field(
        0.0,
        ge=0,
        description="the fastest ONNX file may take this long for one image on one thread; 0: no limit",
    )
    max_size_mb: float = Field(0.0, ge=0, description="that file may have this many megabytes; 0: no limit")

    @field_validator("formats")
    @classmethod
    def _with_onnx(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if "onnx" not in formats:
            raise ValueError(
                "must hold 'onnx': this file is measured, and its exporter refuses networks that cannot be "
                "exported faithfully"
            )
        return formats


class BudgetError(InputError):
    """The student is slower or larger than it may be."""


@dataclass(frozen=True)
class Labelled:
    """Images and their classes."""

    images: Images
    labels: np.ndarray


def build_bundle(
    net: nn.Module,
    *,
    out: Path,
    name: str,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    training: Images,
    validation: Labelled,
    test: Labelled,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    cfg: ExportConfig,
    kept: int | None = None,
    square: Square = "crop",
) -> dict[str, Any]:
    """Write the bundle of `net` (evaluation mode, on the CPU) into `out` and return its bundle.json.

    All images are as the network sees them, made of squares of side `kept` (None: of their own side), which
    were made of pictures as `square` says. int8 takes its ranges from `training` images and is accepted or
    refused on `validation`; a temperature is fitted on all of them. The files are compared with the network
    on `test`, and the report uses it too.
    """
    assert not any(module.training for module in net.modules()), "call .eval() first"
    trained = Deployable(net, mean, std)
    model = Deployable(plain_pools(_without_hooks(net)), mean, std)
    parity.assert_still(model)
    images = np.asarray(test.images[: cfg.parity_images])
    description = _description(classes, mean, std, test.images, kept, square)
    calibrated = _calibrate((trained, model), validation, test) if cfg.calibrate_probabilities else {}
    description |= {"temperature": trained.temperature} if calibrated else {}
    out.mkdir(parents=True, exist_ok=True)
    files = _Files(out, trained, model, images, description)
    largest_batch = files.write_onnx()
    if "int8" in cfg.formats:
        files.write_int8(training, validation, test, cfg.int8)
    if "torchscript" in cfg.formats:
        files.write_torchscript()
    if "pt2" in cfg.formats:
        files.write_pt2()
    files.write_weights()
    parity.assert_still(model)

    most = min(len(test.images), max(cfg.int8.check, cfg.parity_images))
    some = np.asarray(test.images[parity.spread(most, min(GOLDEN, most))])
    _write_golden(out / "golden.npz", some, trained, files.runs.get("int8"), bool(calibrated))
    if calibrated and "int8" in files.runs:
        calibrated["int8"] = _measured(lambda part: files.runs["int8"](part)[0], test, trained.temperature)
    onnx: dict[str, Path] = {
        format: out / files.entries[format]["file"] for format in ("onnx", "int8") if format in files.runs
    }
    milliseconds = latency.measure(onnx, np.ascontiguousarray(images[:1]))
    sizes = {format: (out / files.entries[format]["file"]).stat().st_size for format in files.runs}
    _check_budgets(cfg, milliseconds, sizes)
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        **files.description,
        "max_batch": largest_batch,
        "formats": files.entries,
        "metrics": dict(metrics),
        **({"calibration": calibrated} if calibrated else {}),
        "latency": {"threads": latency.THREADS, "batch": latency.BATCH, "median_ms": milliseconds},
        "provenance": dict(provenance),
        "versions": machine.versions(),
        "cpu": machine.cpu(),
    }
    return _seal(out, facts)


def transform(size: int, channels: int, kept: int, square: Square = "crop") -> dict[str, Any]:
    """What `data.decode` does to any picture: in words, and in the fields that a predictor reads."""
    return {
        "words": (
            "Turn the picture upright by its EXIF orientation, lay transparency on white, convert it to RGB, "
            f"{WORDS[square]}, {_resizing(size, channels, kept)} "
            f"The input is uint8 pixels, N x {size} x {size} x {channels}. "
            "Scaling and normalisation happen inside the graph."
        ),
        **read_bundle.transform(size, channels, kept, square),
    }


def _resizing(size: int, channels: int, kept: int) -> str:
    if kept == size:
        luma = " Reduce it to luma." if channels == 1 else ""
        return f"and resize it to {size} x {size} with Pillow's bilinear filter (antialiased).{luma}"
    then = ", reduce it to luma, and resize it to" if channels == 1 else " and then to"
    return (
        f"resize it to {kept} x {kept}{then} {size} x {size} with Pillow's bilinear filter "
        "(antialiased, rounding to 8 bits each time)."
    )


class _Files:
    """Writes the files of a bundle. Each float file is compared with the trained network."""

    def __init__(
        self,
        out: Path,
        trained: Deployable,
        model: Deployable,
        images: np.ndarray,
        description: Mapping[str, Any],
    ) -> None:
        self.out, self.trained, self.model, self.images = out, trained, model, images
        self.description = description
        self.entries: dict[str, dict[str, Any]] = {}  # `formats` of bundle.json
        self.runs: dict[str, Predict] = {}
        _, self.size, _, self.channels = images.shape

    def write_onnx(self) -> int:
        """Returns the largest batch that was run."""
        path = self.out / "student.onnx"
        onnx_format.write(
            self.model,
            path,
            size=self.size,
            channels=self.channels,
            classes=len(self.description["classes"]),
            metadata=self.description,
        )
        run = onnx_format.load(path)
        return self._add("onnx", path, run, "The ONNX file", opset=onnx_format.OPSET).largest_batch

    def write_int8(self, training: Images, validation: Labelled, test: Labelled, cfg: Int8Config) -> None:
        source = self.out / self.entries["onnx"]["file"]
        entry = self.entries["int8"] = _int8(source, self.description, training, validation, test, cfg)
        if entry["accepted"]:
            self.runs["int8"] = onnx_format.load(self.out / entry["file"])

    def write_torchscript(self) -> None:
        path = self.out / "student.ts"
        torchscript.write(self.model, path, size=self.size, channels=self.channels, metadata=self.description)
        self._add("torchscript", path, torchscript.load(path), "The TorchScript file", deprecated=True)

    def write_pt2(self) -> None:
        path = self.out / "student.pt2"
        pt2.write(self.model, path, size=self.size, channels=self.channels, metadata=self.description)
        self._add("pt2", path, pt2.load(path), "The torch.export file")

    def write_weights(self) -> None:
        from safetensors.torch import save

        path = self.out / "student.safetensors"
        weights = {key: tensor.contiguous().clone() for key, tensor in self.model.net.state_dict().items()}
        path.write_bytes(save(weights))  # only the owner could read a file that `save_file` writes
        self.entries["safetensors"] = {"file": path.name}

    def _add(self, format: str, path: Path, run: Predict, what: str, **facts: Any) -> parity.Parity:
        same = parity.check(
            self.trained.outputs,
            run,
            self.images,
            name=what,
            exact=self.model.exact,
            temperature=self.trained.temperature,
        )
        self.entries[format] = {"file": path.name, **facts, "parity": asdict(same)}
        self.runs[format] = run
        return same


def _description(
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    images: Images,
    kept: int | None,
    square: Square,
) -> dict[str, Any]:
    """What bundle.json and the metadata of the exported files both say."""
    _, size, _, channels = images.shape
    return {
        "schema": SCHEMA,
        "classes": list(classes),
        "input": {"size": size, "channels": channels, "dtype": "uint8", "layout": "NHWC"},
        "transform": transform(size, channels, kept or size, square),
        "mean": [float(x) for x in mean],
        "std": [float(x) for x in std],
        "outputs": list(OUTPUTS),
    }


def _seal(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the page, the card and bundle.json; verify the bundle as its user will."""
    browser_page.write(facts, out / "student.html")
    sizes = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    (out / "README.md").write_text(model_card.text(facts, sizes), encoding="utf-8")
    facts["files"] = {file.name: _hash_and_size(file) for file in sorted(out.iterdir())}
    text = sealed(facts)
    (out / "bundle.json").write_text(text, encoding="utf-8", newline="\n")
    if not passed(checks := verify(out)):
        raise parity.ParityError(f"A predictor would refuse the bundle: {checks[-1].what}: {checks[-1].says}")
    return cast(dict[str, Any], json.loads(text))


def _int8(
    source: Path,
    description: Mapping[str, Any],
    training: Images,
    validation: Labelled,
    test: Labelled,
    cfg: Int8Config,
) -> dict[str, Any]:
    """Quantize, and decide on validation images whether the file is good enough; returns its facts.

    A refused file is kept under another name.
    """
    path, calibration = source.with_name("student.int8.onnx"), np.asarray(training[: cfg.images])
    threads = torch.get_num_threads()
    float_run = onnx_format.load(source, threads=threads)
    for float_first in (False, True):  # the first is faster; the second is tried if the first is refused
        int8.write(
            source, path, calibration, portable=cfg.portable, metadata=description, float_first=float_first
        )
        run = onnx_format.load(path, threads=threads)
        on_validation = int8.compare(float_run, run, validation.images, validation.labels[: cfg.check])
        refused = int8.faults(on_validation, cfg) + int8.batch_faults(run, validation.images[:64])
        if not refused:
            break
    on_test = int8.compare(float_run, run, test.images, test.labels[: cfg.check])
    if refused and cfg.required:
        raise int8.Int8Error(
            f"The int8 student is not good enough on {on_validation.images} validation images: "
            f"{'; '.join(refused)}. Train the student longer, raise export.int8.images, loosen the gate, or "
            "ship the float student alone with export.int8.required: false."
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
        "quality": asdict(on_validation),
        "test": asdict(on_test),
    }


def _calibrate(models: tuple[Deployable, ...], validation: Labelled, test: Labelled) -> dict[str, Any]:
    """Give these models, which are one network, a temperature; returns what it is and what it changes."""
    predict = models[0].predict
    facts = calibration.fitted(_logits(predict, validation), validation.labels)
    for model in models:
        model.temperature = facts["temperature"]
    return facts | {"float": _measured(predict, test, facts["temperature"])}


def _measured(
    predict: Callable[[np.ndarray], np.ndarray], test: Labelled, temperature: float
) -> dict[str, Any]:
    return calibration.measured(_logits(predict, test), test.labels, temperature)


def _logits(predict: Callable[[np.ndarray], np.ndarray], images: Labelled) -> np.ndarray:
    return np.concatenate([predict(part) for part in in_batches(images.images, len(images.labels))])


def _write_golden(
    path: Path, images: np.ndarray, trained: Deployable, int8_run: Predict | None, calibrated: bool
) -> None:
    """A few real images and the answers to expect; probabilities only if they are calibrated."""
    arrays = {"images": images}
    for name, run in (("fp32", trained.outputs), ("int8", int8_run)):
        if run is not None:
            arrays[f"logits_{name}"], probabilities = run(images)
            arrays |= {f"probabilities_{name}": probabilities} if calibrated else {}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _check_budgets(cfg: ExportConfig, milliseconds: Mapping[str, float], sizes: Mapping[str, int]) -> None:
    format = min((each for each in ("onnx", "int8") if each in milliseconds), key=milliseconds.__getitem__)
    took, mb = milliseconds[format], sizes[format] / 1e6
    advice = "Choose a smaller student net or allow more."
    if cfg.max_latency_ms and took > cfg.max_latency_ms:
        raise BudgetError(
            f"export.max_latency_ms: the student's fastest file ({format}) takes {took:.3g} ms for one image "
            f"on one thread here, but {cfg.max_latency_ms:g} ms are allowed. {advice}"
        )
    if cfg.max_size_mb and mb > cfg.max_size_mb:
        raise BudgetError(
            f"export.max_size_mb: the student's fastest file ({format}) has {mb:.3g} MB, "
            f"but {cfg.max_size_mb:g} MB are allowed. {advice}"
        )


def _without_hooks(net: nn.Module) -> nn.Module:
    """A copy without hooks; `net` keeps its own.

    Hooks may hold tensors that cannot be copied, and they would run inside the exporter.
    """
    own = [(module, name, getattr(module, name)) for module in net.modules() for name in HOOKS]
    try:
        for module, name, _ in own:
            setattr(module, name, OrderedDict())
        twin = copy.deepcopy(net)
    finally:
        for module, name, hooks in own:
            setattr(module, name, hooks)
    return twin.eval().requires_grad_(False)


def _hash_and_size(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}
