"""A small bundle like those of stage export. Its graph is made by hand: no network is trained or exported."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from PIL import Image

from pipeline.deploy.read_bundle import sealed, transform

KEPT, SIZE, CLASSES = 24, 16, ("ant", "bee", "cat", "dog", "elk")


def transform_facts(channels: int, kept: int, square: str = "crop") -> dict[str, Any]:
    return {"words": "As evaluated.", **transform(SIZE, channels, kept, square)}


def graph(
    channels: int = 3,
    *,
    seed: int = 0,
    kept: int = KEPT,
    square: str = "crop",
    temperature: float | None = None,
    said: float | None = None,
    bend: Callable[[onnx.ModelProto], None] | None = None,
) -> bytes:
    """uint8 N x 16 x 16 x C to logits and probabilities: a convolution, a mean and a matrix.

    `said` is the temperature in the metadata, if it is not the graph's. `bend` may change the model.
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {
        "mean": np.full((1, channels, 1, 1), 120, np.float32),
        "scale": np.full((1, channels, 1, 1), 1 / 60, np.float32),
        "w": rng.normal(size=(8, channels, 5, 5)).astype(np.float32) / 3,
        "b": rng.normal(size=8).astype(np.float32),
        "head": rng.normal(size=(8, len(CLASSES))).astype(np.float32) * 4,
        "bias": rng.normal(size=len(CLASSES)).astype(np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT, name="cast"),
        node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2], name="layout"),
        node("Sub", ["nchw", "mean"], ["centred"], name="centre"),
        node("Mul", ["centred", "scale"], ["normal"], name="normalise"),
        node(
            "Conv",
            ["normal", "w", "b"],
            ["conv"],
            kernel_shape=[5, 5],
            pads=[2, 2, 2, 2],
            strides=[2, 2],
            name="conv",
        ),
        node("Relu", ["conv"], ["relu"], name="relu"),
        node("GlobalAveragePool", ["relu"], ["pool"], name="pool"),
        node("Flatten", ["pool"], ["flat"], name="flat"),
        node("Gemm", ["flat", "head", "bias"], ["logits"], name="head"),
        *([] if temperature is None else [node("Div", ["logits", "t"], ["scaled"], name="divide")]),
        node(
            "Softmax",
            ["logits" if temperature is None else "scaled"],
            ["probabilities"],
            axis=1,
            name="softmax",
        ),
    ]
    constants |= {} if temperature is None else {"t": np.array(temperature, np.float32)}
    value = helper.make_tensor_value_info
    outputs = [
        value(name, TensorProto.FLOAT, ["batch", len(CLASSES)]) for name in ("logits", "probabilities")
    ]
    made = helper.make_graph(
        nodes,
        "student",
        [value("image", TensorProto.UINT8, ["batch", SIZE, SIZE, channels])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    says: dict[str, Any] = {"classes": CLASSES, "transform": transform_facts(channels, kept, square)}
    says |= {} if temperature is None else {"temperature": said or temperature}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in says.items()})
    if bend:
        bend(model)
    return bytes(model.SerializeToString())


class Reader:
    """Gives the quantizer one batch."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter([{"image": images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantized(content: bytes, images: np.ndarray, folder: Path) -> bytes:
    """The same graph in int8, quantized with the settings of stage export."""
    (folder / "fp32").write_bytes(content)
    logging.disable(logging.WARNING)  # the quantizer recommends its preprocessing
    quantize_static(
        folder / "fp32",
        folder / "int8",
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=["cast", "layout", "centre", "normalise", "head", "divide", "softmax"],
    )
    logging.disable(logging.NOTSET)
    return (folder / "int8").read_bytes()


def pictures(
    count: int, channels: int = 3, *, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)
) -> np.ndarray:
    """Smooth coloured blobs."""
    rng = np.random.default_rng(seed)
    blobs = [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for _ in range(count)
    ]
    return np.stack(
        [
            np.asarray(blob if channels == 3 else blob.convert("L")).reshape(size[1], size[0], channels)
            for blob in blobs
        ]
    )


def answers(content: bytes, images: np.ndarray, what: str = "logits") -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([what], {"image": images})[0])


def npz(**arrays: np.ndarray) -> bytes:
    file = BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


@dataclass
class Draft:
    """A bundle before it is written. `write` hashes and seals whatever is in it."""

    facts: dict[str, Any]
    files: dict[str, bytes]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        hashes = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in self.files.items()
        }
        (folder / "bundle.json").write_text(
            sealed({**self.facts, "files": hashes}), encoding="utf-8", newline="\n"
        )
        return folder


def draft(
    scratch: Path,
    channels: int = 3,
    *,
    seed: int = 0,
    kept: int = KEPT,
    square: str = "crop",
    temperature: float | None = None,
    int8: bool = True,
) -> Draft:
    fp32 = graph(channels, seed=seed, kept=kept, square=square, temperature=temperature)
    images = pictures(8, channels, seed=seed)
    files = {
        "student.onnx": fp32,
        "student.ts": b"torchscript",
        "student.safetensors": b"weights" * 40,
        "README.md": b"# A student\n",
    }
    golden = {"images": images, "logits_fp32": answers(fp32, images)}
    formats: dict[str, Any] = {
        "onnx": {"file": "student.onnx", "opset": 20, "parity": {"rel": 3e-7}},
        "torchscript": {"file": "student.ts", "deprecated": True},
        "safetensors": {"file": "student.safetensors"},
    }
    if int8:
        files["student.int8.onnx"] = quantized(fp32, pictures(64, channels, seed=9), scratch)
        golden["logits_int8"] = answers(files["student.int8.onnx"], images)
        formats["int8"] = {
            "file": "student.int8.onnx",
            "accepted": True,
            "quality": {"agreement": 0.995},
            "portable": False,
        }
    if temperature is not None:
        golden |= {
            f"probabilities_{name}": answers(files[file], images, "probabilities")
            for name, file in (("fp32", "student.onnx"), ("int8", "student.int8.onnx"))
            if file in files
        }
    files["golden.npz"] = npz(**golden)
    facts = {
        "schema": 2,
        "name": "tiny",
        "classes": list(CLASSES),
        "input": {"size": SIZE, "channels": channels, "dtype": "uint8", "layout": "NHWC"},
        "transform": transform_facts(channels, kept, square),
        **({} if temperature is None else {"temperature": temperature}),
        "mean": [0.47] * channels,
        "std": [0.24] * channels,
        "outputs": ["logits", "probabilities"],
        "max_batch": 64,
        "formats": formats,
        "metrics": {"accuracy": 0.875, "spread": 0.01},
        "latency": {},
        "provenance": {"data": "0" * 64},
        "versions": {},
        "cpu": {},
    }
    return Draft(facts, files)


@dataclass(frozen=True)
class Workshop:
    """The functions above, for the tests in this folder."""

    graph: Callable[..., bytes]
    pictures: Callable[..., np.ndarray]
    answers: Callable[[bytes, np.ndarray], np.ndarray]
    npz: Callable[..., bytes]
    draft: Callable[..., Draft]
    kept: int = KEPT
    size: int = SIZE
    classes: tuple[str, ...] = CLASSES


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    return Workshop(graph, pictures, answers, npz, draft)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return draft(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def bundle(template: Draft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle. No test changes it."""
    return template.write(tmp_path_factory.mktemp("a place with spaces") / "tiny")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    """A bundle with calibrated probabilities, before it is written."""
    return draft(tmp_path_factory.mktemp("warm"), temperature=2.5)


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "tiny"))


@pytest.fixture
def bent(template: Draft, tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle with other files or facts, but with the right hashes and seal, as a forger would.

    `student__onnx` is the content of student.onnx.
    """

    def write(facts: dict[str, Any] | None = None, **files: bytes) -> Path:
        changed = {name.replace("__", "."): content for name, content in files.items()}
        return Draft({**template.facts, **(facts or {})}, {**template.files, **changed}).write(
            tmp_path / "bent"
        )

    return write
