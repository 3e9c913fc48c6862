"""ONNX: one file that describes itself and takes batches of any size."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.export.deployable import Deployable, Predict
from pipeline.export.quiet import quiet
from pipeline.settings import InputError

OPSET = 20


def write(
    model: Deployable, path: Path, *, size: int, channels: int, classes: int, metadata: Mapping[str, Any]
) -> None:
    """Write `model` to `path`. Equal weights give equal bytes, wherever and whenever they are written."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    example = torch.zeros((2, size, size, channels), dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                input_names=["image"],
                output_names=["logits", "probabilities"],
                dynamic_shapes=({0: "batch"},),
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(_explain(error)) from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # removes source files, lines and the build folder
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.model_version = 1  # if it is not set, runtimes report 2**63 - 1
    _check_declared(proto, size=size, channels=channels, classes=classes)
    save(proto, path, metadata)


def save(proto: Any, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check a graph and write it with its metadata."""
    import onnx

    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {key: json.dumps(metadata[key]) for key in sorted(metadata)})
    onnx.checker.check_model(proto, full_check=True)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    assert opsets == {"": OPSET}, opsets
    path.write_bytes(proto.SerializeToString(deterministic=True))


def load(path: Path, *, threads: int = 1) -> Predict:
    """The file as a callable, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
        return logits, probabilities

    return run


def _explain(error: BaseException) -> str:
    """One paragraph out of the exporter's long message.

    It holds the innermost reason, and the line of the network's code if torch names one.
    """
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    reason = re.sub(r"\s+", " ", str(inner).strip().split("\n\n")[0]).rstrip(".")[:400]
    where = re.search(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)', str(inner))
    place = f" At {where[1]}, line {where[2]}: `{where[3].strip()}`." if where else ""
    return (
        f"The network cannot be exported to ONNX.{place} torch says: {type(inner).__name__}: {reason}. "
        "Write that part with tensor operations. No Python branch, loop or number may depend on the data."
    )


def _check_declared(proto: Any, *, size: int, channels: int, classes: int) -> None:
    import onnx

    expected = {
        "image": (onnx.TensorProto.UINT8, ["batch", size, size, channels]),
        "logits": (onnx.TensorProto.FLOAT, ["batch", classes]),
        "probabilities": (onnx.TensorProto.FLOAT, ["batch", classes]),
    }
    declared = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*proto.graph.input, *proto.graph.output)
    }
    for name, (_, shape) in expected.items():
        if declared.get(name) != expected[name]:
            raise InputError(
                f"The exported graph declares {name!r} as {declared[name][1]} where {shape} is needed: "
                f"the network must take any number of images and give {classes} numbers for each. "
                "Look for a reshape with a fixed batch size in its forward."
            )
