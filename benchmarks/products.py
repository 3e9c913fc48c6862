"""Matrix products in onnxruntime: what a network's convolutions are held against."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Shape(NamedTuple):
    rows: int
    columns: int
    inner: int

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.inner


def model(form: str, shapes: Sequence[Shape]) -> bytes:
    """A product for each shape, float or uint8 x int8 into int32; the right matrices are constants, as weights are. It takes no input."""
    from onnx import helper, numpy_helper

    operator, left, right, out = {
        "float": ("MatMul", np.float32, np.float32, np.float32),
        "int8": ("MatMulInteger", np.uint8, np.int8, np.int32),
    }[form]
    random, constants = np.random.default_rng(0), []
    for i, (rows, columns, inner) in enumerate(shapes):
        constants.append(numpy_helper.from_array(random.integers(0, 100, (rows, inner)).astype(left), f"left_{i}"))
        constants.append(numpy_helper.from_array(random.integers(-100, 100, (inner, columns)).astype(right), f"right_{i}"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(out))
    graph = helper.make_graph(
        [helper.make_node(operator, [f"left_{i}", f"right_{i}"], [f"product_{i}"], f"product_{i}") for i in range(len(shapes))],
        "products",
        [],
        [helper.make_tensor_value_info(f"product_{i}", kind, [shape.rows, shape.columns]) for i, shape in enumerate(shapes)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def options(threads: int) -> Any:
    """For a session of such a model: what is optimized would be computed once and for all."""
    import onnxruntime

    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = threads
    given.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return given
