"""Matrix products in onnxruntime, with which the convolutions of a network are compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import SessionOptions


class Shape(NamedTuple):
    """A product of rows x inner and inner x columns."""

    rows: int
    columns: int
    inner: int

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.inner


def model(form: str, shapes: Sequence[Shape]) -> bytes:
    """An ONNX model without inputs that computes a product of each shape, `product_0` and so on.

    `form` is `float`, or `int8` for uint8 x int8 into int32. The right matrices are constants, as weights
    are.
    """
    from onnx import helper, numpy_helper

    operator, left, right, out = {
        "float": ("MatMul", np.float32, np.float32, np.float32),
        "int8": ("MatMulInteger", np.uint8, np.int8, np.int32),
    }[form]
    random, constants, nodes, outputs = np.random.default_rng(0), [], [], []
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(out))
    for i, (rows, columns, inner) in enumerate(shapes):
        lefts = random.integers(0, 100, (rows, inner)).astype(left)
        rights = random.integers(-100, 100, (inner, columns)).astype(right)
        constants += [
            numpy_helper.from_array(lefts, f"left_{i}"),
            numpy_helper.from_array(rights, f"right_{i}"),
        ]
        nodes.append(
            helper.make_node(operator, [f"left_{i}", f"right_{i}"], [f"product_{i}"], f"product_{i}")
        )
        outputs.append(helper.make_tensor_value_info(f"product_{i}", kind, [rows, columns]))
    graph = helper.make_graph(nodes, "products", [], outputs, constants)
    opset = helper.make_opsetid("", 20)
    content: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return content


def options(threads: int) -> "SessionOptions":
    """For a session of such a model, without optimization, which would compute the products in advance."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return chosen
