from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.deploy import onnx_graph
from pipeline.deploy.read_bundle import BundleError, open_bundle


def test_it_reads_the_same_as_onnx(template: Any) -> None:
    for name in ("student.onnx", "student.int8.onnx"):
        content = template.files[name]
        model, read = onnx.load_from_string(content), onnx_graph.read(content, name=name)
        assert read.operators == {node.op_type for node in model.graph.node}
        assert {p.key: p.value for p in model.metadata_props} == read.metadata
        assert read.inputs == {"image": onnx_graph.Value(TensorProto.UINT8, ("batch", 16, 16, 3))}
        assert read.outputs["logits"] == onnx_graph.Value(TensorProto.FLOAT, ("batch", 5))


def _operator(model: onnx.ModelProto) -> None:
    model.graph.node[5].op_type = "Loop"


def _domain(model: onnx.ModelProto) -> None:
    model.graph.node[5].domain = "com.microsoft"


def _function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(
        helper.make_function("own", "Relu", ["x"], ["y"], [node], [helper.make_opsetid("", 20)])
    )


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "inner")
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def _branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "inner", [], [])
    model.graph.node[5].attribute.append(helper.make_attribute("body", inner))


def _sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def _sequence(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    "bend",
    [_operator, _domain, _function, _external, _external_constant, _branch, _sparse, _training, _sequence],
)
def test_what_is_not_allowed_is_refused(workshop: Any, bend: Callable[[onnx.ModelProto], None]) -> None:
    onnx_graph.read(workshop.graph(), name="sound")
    with pytest.raises(BundleError, match="Nothing of it was run"):
        onnx_graph.read(workshop.graph(bend=bend), name="bent")


def test_damaged_bytes_raise_no_other_error(template: Any) -> None:
    whole = template.files["student.int8.onnx"]
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(whole)
        for position in random.integers(0, len(broken), 3):
            broken[position] = random.integers(0, 256)
        try:
            onnx_graph.read(bytes(broken), name="broken")
        except BundleError:
            refused += 1
    assert refused > 50
    for length in range(0, len(whole), 37):
        try:
            onnx_graph.read(whole[:length], name="short")
        except BundleError:
            refused += 1


def _rename(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.input[0].name = "picture"


def _float(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _fixed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _larger(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32


def _fewer(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def _more(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("pool", TensorProto.FLOAT, None))


def _other_classes(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"classes": '["bee", "ant", "cat", "dog", "elk"]'})


def _no_classes(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    "bend", [_rename, _float, _fixed, _larger, _fewer, _more, _other_classes, _no_classes]
)
def test_a_file_that_does_not_fit_its_bundle_is_refused(
    workshop: Any, bundle: Path, bend: Callable[[onnx.ModelProto], None]
) -> None:
    opened = open_bundle(bundle)
    assert onnx_graph.check(workshop.graph(), opened, name="sound").outputs
    with pytest.raises(BundleError, match="bent"):
        onnx_graph.check(workshop.graph(bend=bend), opened, name="bent")
