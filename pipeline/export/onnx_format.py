"""ONNX: one self-describing file with a batch size that really is free."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.export.deployable import Deployable
from pipeline.export.quiet import quiet
from pipeline.inputs import InputError

OPSET = 20


def write(model: Deployable, path: Path, *, size: int, channels: int, classes: int, metadata: Mapping[str, Any]) -> None:
    """Write `model` to `path`; equal weights give equal bytes, wherever and whenever they are written."""
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
    ClearMetadataAndDocStringPass()(program.model)  # it holds source files, lines and the build folder
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.model_version = 1  # unset, runtimes report 2**63 - 1
    _check_declared(proto, size=size, channels=channels, classes=classes)
    save(proto, path, metadata)


def save(proto: Any, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a sound graph, with what a reader should know inside it."""
    import onnx

    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {key: json.dumps(metadata[key]) for key in sorted(metadata)})
    onnx.checker.check_model(proto, full_check=True)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    assert opsets == {"": OPSET}, opsets
    path.write_bytes(proto.SerializeToString(deterministic=True))


def load(path: Path, *, threads: int = 1) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The file as a callable: uint8 images N x H x W x C to (logits, probabilities), on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
        return logits, probabilities

    return run


def _explain(error: BaseException) -> str:
    """One paragraph from the exporter's pages: the innermost reason, and the line of the network's code where torch names one."""
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    reason = re.sub(r"\s+", " ", str(inner).strip().split("\n\n")[0]).rstrip(".")[:400]
    where = re.search(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)', str(inner))
    place = f" At {where[1]}, line {where[2]}: `{where[3].strip()}`." if where else ""
    return (
        f"The network can't be exported to ONNX.{place} torch says: {type(inner).__name__}: {reason}. "
        "Write that part with tensor operations whose result doesn't depend on a Python branch, loop or number taken from the data."
    )


def _check_declared(proto: Any, *, size: int, channels: int, classes: int) -> None:
    import onnx

    expected = {
        "image": (onnx.TensorProto.UINT8, ["batch", size, size, channels]),
        "logits": (onnx.TensorProto.FLOAT, ["batch", classes]),
        "probabilities": (onnx.TensorProto.FLOAT, ["batch", classes]),
    }
    declared = {
        value.name: (value.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in (*proto.graph.input, *proto.graph.output)
    }
    for name, (_, shape) in expected.items():
        if declared.get(name) != expected[name]:
            raise InputError(
                f"The exported graph's {name!r} is declared as {declared[name][1]} where {shape} is needed: the network must take any "
                f"number of images and give {classes} numbers for each. Look for a reshape with a written-out batch size in its forward."
            )
