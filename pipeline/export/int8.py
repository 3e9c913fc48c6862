"""int8: onnxruntime's static quantizer with our settings, and the gate that its file has to pass.

Activations are unsigned, weights are signed and scaled by channel, and ranges are the smallest and largest
value that training images reach. The classifier stays in float, and the first layer too if the file fails the
gate otherwise. A bad calibration may leave the accuracy as it was, so the gate looks at the logits too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.data.images import Images
from pipeline.export import onnx_format
from pipeline.export.blocks import block_first_layer
from pipeline.export.deployable import Predict, in_batches
from pipeline.export.quiet import quiet
from pipeline.files import check_room
from pipeline.records.intervals import of_difference
from pipeline.settings import InputError, Settings

PRODUCTS = ("Conv", "Gemm", "MatMul")  # the operators that int8 makes fast
BATCHES = (1, 2, 3, 7)
COPIES = 2  # of the file that the quantizer writes beside it, at most


class Int8Config(Settings):
    images: int = Field(256, ge=16, description="training images that give the ranges of activations")
    portable: bool = Field(
        False,
        description="7-bit weights: exact on CPUs without VNNI too, but a little less exact everywhere",
    )
    max_drop: float = Field(0.5, ge=0, le=100, description="points of accuracy that may be lost")
    min_agreement: float = Field(
        98.5, ge=0, le=100, description="percentage of the images that must get the class float gives them"
    )
    min_snr: float = Field(30.0, description="decibels that the logits must be above their error")
    check: int = Field(
        5000,
        ge=2,
        description="at most this many validation images for the gate, and test images for the report",
    )
    required: bool = Field(
        False, description="fail if the file does not pass its gate, instead of shipping the float file alone"
    )


class Int8Error(InputError):
    """The int8 student is not good enough, and it was required."""


@dataclass(frozen=True)
class Quality:
    """The int8 file compared with the float file on the same images. Accuracies are fractions."""

    accuracy: float
    accuracy_fp32: float
    drop: float  # points of accuracy
    low: float  # ends of the drop's 95 % interval
    high: float
    agreement: float  # fraction of the images that get the same class
    snr_db: float
    images: int


def write(
    source: Path,
    path: Path,
    images: np.ndarray,
    *,
    portable: bool,
    metadata: Mapping[str, Any],
    float_first: bool = False,
) -> None:
    """Quantize the ONNX file `source` into `path`. Equal input gives equal bytes.

    `images` are real uint8 training images. `float_first` leaves the first layer in float.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(source, load_external_data=False).graph
    check_room(source.parent, COPIES * source.stat().st_size)
    with quiet():
        quantize_static(
            source,
            path,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=portable,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=_float_nodes(graph, float_first),
            # onnxruntime quantizes the biases when it loads the file; without them it is a twentieth smaller
            extra_options={"QuantizeBias": False},
        )
    proto = onnx.load(path)
    del proto.graph.value_info[:]  # runtimes infer it
    block_first_layer(proto.graph)
    _widen(proto.graph)
    _halve(proto.graph)
    _share(proto.graph)
    _drop_unused_opsets(proto)
    onnx_format.save(proto, path, metadata)


def compare(float_file: Predict, int8_file: Predict, images: Images, labels: np.ndarray) -> Quality:
    """How much the int8 file lost, on images it was not calibrated with: the first `len(labels)` of them."""
    answers = [(float_file(part)[0], int8_file(part)[0]) for part in in_batches(images, len(labels))]
    want, got = (np.concatenate(logits) for logits in zip(*answers, strict=True))
    if not np.isfinite(got).all():
        raise Int8Error("int8: the quantized network gives NaN or infinity on real images.")
    before, after = want.argmax(1) == labels, got.argmax(1) == labels  # right answers
    low, high = of_difference(int((before & ~after).sum()), int((after & ~before).sum()), len(labels))
    signal, noise = _centred(want), _centred(want - got)
    return Quality(
        accuracy=float(after.mean()),
        accuracy_fp32=float(before.mean()),
        drop=100 * float(before.mean() - after.mean()),
        low=100 * low,
        high=100 * high,
        agreement=float((want.argmax(1) == got.argmax(1)).mean()),
        snr_db=float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-12 * signal, 1e-30))),
        images=len(labels),
    )


def faults(quality: Quality, cfg: Int8Config) -> list[str]:
    """Why the file is refused; empty if it passes.

    A drop counts only if it is more than chance. On few images this is hard to tell.
    """
    found = []
    if quality.drop > cfg.max_drop and quality.low > 0:
        found.append(
            f"it loses {quality.drop:.2f} points of accuracy [{quality.low:.2f}, {quality.high:.2f}] "
            f"(at most {cfg.max_drop:g} are allowed)"
        )
    if 100 * quality.agreement < cfg.min_agreement:
        found.append(
            f"{100 * quality.agreement:.2f} % of the images get the class that float gives them "
            f"(at least {cfg.min_agreement:g} % are needed)"
        )
    if quality.snr_db < cfg.min_snr:
        found.append(
            f"its logits are {quality.snr_db:.1f} dB above their error "
            f"(at least {cfg.min_snr:g} dB are needed)"
        )
    return found


def batch_faults(run: Predict, images: np.ndarray) -> list[str]:
    """Why the file is refused if its answers depend on the batch size by more than rounding; else empty."""
    want = run(np.ascontiguousarray(images))[0]
    allowed = 0.01 * float(np.abs(want).max())
    for batch in BATCHES:
        got = np.concatenate([run(part)[0] for part in in_batches(images, len(images), batch)])
        if got.shape != want.shape or not np.abs(got - want).max() <= allowed:
            return [f"it answers differently if it gets {batch} images at a time"]
    return []


class _Reader:
    """The quantizer reads images from this."""

    def __init__(self, images: np.ndarray) -> None:
        self.parts = in_batches(images, len(images))

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self.parts, None)
        return None if part is None else {"image": part}


def _float_nodes(graph: Any, float_first: bool) -> list[str]:
    """The nodes that stay in float: the normalisation, the first product if asked, and the classifier."""
    before = [node.name for node in takewhile(lambda node: node.op_type not in PRODUCTS, graph.node)]
    before += [graph.node[len(before)].name] if float_first else []
    makers = {output: node for node in graph.node for output in node.output}
    after, todo = [], ["probabilities", "logits"]
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.name not in after:
            after.append(node.name)
            if node.op_type not in PRODUCTS:
                todo += node.input
    return before + after


def _widen(graph: Any) -> None:
    """Repeat the mean and scale of each channel for a whole row of pixels.

    onnxruntime moves the change of layout behind the normalisation, where it would otherwise compute three
    numbers at a time.
    """
    from onnx import numpy_helper

    width = graph.input[0].type.tensor_type.shape.dim[2].dim_value
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in takewhile(lambda node: node.op_type not in PRODUCTS, graph.node):
        for name in set(node.input) & set(constants) if node.op_type in ("Sub", "Mul") else ():
            values = numpy_helper.to_array(constants[name])
            if values.ndim == 4 and values.shape[2:] == (1, 1):
                constants[name].CopyFrom(numpy_helper.from_array(np.repeat(values, width, 3), name))


def _halve(graph: Any) -> None:
    """Store the weights of float products in 16 bits. They are cast to 32 bits when the file is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for place, node in reversed(list(enumerate(graph.node))):
        for name in node.input if node.op_type in PRODUCTS else ():
            if name in constants and len(constants[name].dims) > 1:
                half = numpy_helper.to_array(constants[name]).astype(np.float16)
                constants[name].CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
                graph.node.insert(
                    place,
                    helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=TensorProto.FLOAT),
                )


def _share(graph: Any) -> None:
    """Store equal constants once, for example the zero points of layers of the same width."""
    from onnx import numpy_helper

    first: dict[tuple[Any, ...], str] = {}
    names = {}
    for tensor in graph.initializer:
        content = (tensor.data_type, *tensor.dims, numpy_helper.to_array(tensor).tobytes())
        names[tensor.name] = first.setdefault(content, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    unique = [tensor for tensor in graph.initializer if names[tensor.name] == tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(unique)


def _drop_unused_opsets(proto: Any) -> None:
    """The quantizer declares operators of its own, which the file does not use."""
    used = {node.domain for node in proto.graph.node}
    opsets = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)


def _centred(logits: np.ndarray) -> float:
    """Energy of the logits around their mean over the classes: what all classes share has no effect."""
    logits = logits.astype(np.float64)
    return float(((logits - logits.mean(1, keepdims=True)) ** 2).sum())
