"""The first convolution of an int8 file, computed on blocks of pixels: the same integers in less time.

onnxruntime convolves integers directly if the number of input channels is a multiple of four. It copies the
three channels of a picture first (im2col), and quantizes the result in a step of its own. So some pixels of a
row become one pixel with more channels, for which no byte has to move: N x H x W x 3 is N x H x W/4 x 12 in
memory. The convolution gives blocks too, and they become pixels again without a copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MULTIPLE = 4  # onnxruntime wants a multiple of this many channels
NORMALISATIONS = (  # the operators between a picture and the first layer
    ["Transpose", "Cast", "Sub", "Mul", "QuantizeLinear", "DequantizeLinear"],
    ["Cast", "Sub", "Mul", "Transpose", "QuantizeLinear", "DequantizeLinear"],
)


class _Layer(NamedTuple):
    """The nodes of a first layer in int8."""

    before: list[Any]  # from the picture on
    weights: Any
    conv: Any
    after: list[Any]  # activations, then quantization


class _Geometry(NamedTuple):
    """Sizes of the first layer, in pixels."""

    block: int  # pixels of a row that become one
    height: int  # of the picture
    width: int
    rows: int  # of the layer's answer
    columns: int
    down: int  # strides
    step: int
    top: int  # padding
    left: int
    bottom: int


def block_first_layer(graph: Any) -> bool:
    """Put the first layer of an int8 graph into blocks. Returns False if the layer does not allow it."""
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layer = _first_layer(graph, constants)
    if layer is None:
        return False
    geometry = _geometry(graph, layer, constants)
    if geometry is None:
        return False
    new = _Nodes()
    blocks = _picture_to_blocks(new, layer, constants, geometry)
    answer = _convolve(new, layer, constants, geometry, blocks)
    _blocks_to_pixels(new, layer, geometry, answer, channels=len(constants[layer.weights.input[0]]))
    _replace(graph, [*layer.before, layer.weights, layer.conv, *layer.after], new)
    return True


def _first_layer(graph: Any, constants: dict[str, Any]) -> _Layer | None:
    """None unless the first layer is an int8 convolution and alone reads a picture normalised as ours."""
    makers = {output: node for node in graph.node for output in node.output}

    def only_reader(node: Any) -> Any:
        readers = [other for other in graph.node if node.output[0] in other.input]
        return readers[0] if len(readers) == 1 else None

    conv = next((node for node in graph.node if node.op_type == "Conv"), None)
    if conv is None or len(conv.input) < 3 or conv.input[2] not in constants:
        return None
    weights = makers.get(conv.input[1])
    if weights is None or weights.op_type != "DequantizeLinear":
        return None
    if any(name not in constants for name in weights.input):
        return None
    before: list[Any] = [makers.get(conv.input[0])]
    while before[0] is not None and before[0].input[0] != "image":
        before.insert(0, makers.get(before[0].input[0]))
    if before[0] is None or [node.op_type for node in before] not in NORMALISATIONS:
        return None
    if any(only_reader(node) is not after for node, after in zip(before, [*before[1:], conv], strict=True)):
        return None
    after = [only_reader(conv)]
    while after[-1] is not None and after[-1].op_type in ("Relu", "Clip", "QuantizeLinear"):
        after.append(only_reader(after[-1]))
    if after[-1] is None or [node.op_type for node in after[-2:]] != ["QuantizeLinear", "DequantizeLinear"]:
        return None
    return _Layer(before, weights, conv, after)


def _geometry(graph: Any, layer: _Layer, constants: dict[str, Any]) -> _Geometry | None:
    """None if the layer cannot be computed in blocks."""
    attributes = _attributes(layer.conv)
    height, width = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:3])
    (down, step), (top, left, bottom, right) = attributes["strides"], attributes["pads"]
    _, channels, tall, wide = constants[layer.weights.input[0]].shape
    rows, columns = (height + top + bottom - tall) // down + 1, (width + left + right - wide) // step + 1
    block = next(n for n in (1, 2, 4) if n * channels % MULTIPLE == 0)
    is_plain = attributes["group"] == 1 and set(attributes["dilations"]) == {1}
    fits = block % step == 0 and width % block == 0 and columns * step == width
    if block == 1 or not is_plain or not fits or attributes["auto_pad"] != b"NOTSET":
        return None
    return _Geometry(block, height, width, rows, columns, down, step, top, left, bottom)


def _attributes(conv: Any) -> dict[str, Any]:
    from onnx import helper

    defaults = {
        "strides": [1, 1],
        "pads": [0, 0, 0, 0],
        "dilations": [1, 1],
        "group": 1,
        "auto_pad": b"NOTSET",
    }
    return defaults | {each.name: helper.get_attribute_value(each) for each in conv.attribute}


def _picture_to_blocks(new: "_Nodes", layer: _Layer, constants: dict[str, Any], geometry: _Geometry) -> str:
    """Nodes that normalise and quantize the picture as blocks; returns the name of what they give."""
    nodes = {node.op_type: node for node in layer.before}
    block, height, width = geometry.block, geometry.height, geometry.width
    channels = constants[layer.weights.input[0]].shape[1]
    shape = np.array([-1, height, width // block, block * channels])
    name = new.add("Reshape", "image", new.constant(shape))
    name = new.add("Cast", name, to=1)
    for kind in ("Sub", "Mul"):
        row = np.tile(constants[nodes[kind].input[1]].reshape(channels, -1)[:, 0], width)
        name = new.add(kind, name, new.constant(row.reshape(1, 1, width // block, block * channels)))
    name = new.quantized(name, nodes["QuantizeLinear"])
    return new.add("Transpose", name, perm=[0, 3, 1, 2])


def _convolve(
    new: "_Nodes", layer: _Layer, constants: dict[str, Any], geometry: _Geometry, blocks: str
) -> str:
    """The convolution and its activations on blocks; returns the name of what they give."""
    weight = constants[layer.weights.input[0]]
    blocked, start, end = _blocked(weight, geometry.block, geometry.step, geometry.left)
    phases = geometry.block // geometry.step
    scales = [new.constant(np.tile(constants[each], phases)) for each in layer.weights.input[1:]]
    weights = new.add("DequantizeLinear", new.constant(blocked), *scales, axis=0)
    bias = new.constant(np.tile(constants[layer.conv.input[2]], phases))
    pads = [geometry.top, -start, geometry.bottom, end]
    shape = {"kernel_shape": blocked.shape[2:], "strides": [geometry.down, 1], "pads": pads}
    name = new.add("Conv", blocks, weights, bias, **shape)
    for node in layer.after[:-2]:
        name = new.add(node.op_type, name, *node.input[1:])
    return new.quantized(name, layer.after[-1])


def _blocks_to_pixels(new: "_Nodes", layer: _Layer, geometry: _Geometry, name: str, *, channels: int) -> None:
    """Nodes that turn blocks into the pixels that the layer gave before, under the same name."""
    name = new.add("Transpose", name, perm=[0, 2, 3, 1])
    shape = np.array([-1, geometry.rows, geometry.columns, channels])
    name = new.add("Reshape", name, new.constant(shape))
    name = new.quantized(name, layer.after[-1])
    new.add("Transpose", name, perm=[0, 3, 1, 2])
    new.nodes[-1].output[:] = layer.after[-1].output


def _blocked(weight: np.ndarray, block: int, step: int, left: int) -> tuple[np.ndarray, int, int]:
    """The weights for blocks, and the first and the last block that one answer reads, relative to its own.

    Output channels of the same pixel of a block stand side by side.
    """
    outs, channels, tall, wide = weight.shape
    phases = block // step
    start, end = -left // block, (step * (phases - 1) + wide - 1 - left) // block
    blocked = np.zeros((phases, outs, block, channels, tall, end - start + 1), weight.dtype)
    for phase in range(phases):
        for column in range(wide):
            pixel = step * phase + column - left
            blocked[phase, :, pixel % block, :, :, pixel // block - start] = weight[..., column]
    return blocked.reshape(phases * outs, block * channels, tall, -1), start, end


class _Nodes:
    """New nodes and constants. Each is named by its number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"blocks_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"blocks_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def quantized(self, name: str, like: Any) -> str:
        """Into the integers of `like` and back.

        onnxruntime computes the nodes between two such pairs on integers.
        """
        name = self.add("QuantizeLinear", name, *like.input[1:])
        return self.add("DequantizeLinear", name, *like.input[1:])


def _replace(graph: Any, old: Sequence[Any], new: _Nodes) -> None:
    # all that the new nodes read is computed before the last old node
    last = next(place for place, node in enumerate(graph.node) if node is old[-1])
    nodes = [*graph.node[:last], *new.nodes, *graph.node[last + 1 :]]
    nodes = [node for node in nodes if not any(node is gone for gone in old)]
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in (*graph.initializer, *new.constants) if tensor.name in used]
    for target, content in ((graph.node, nodes), (graph.initializer, constants)):
        del target[:]
        target.extend(content)
