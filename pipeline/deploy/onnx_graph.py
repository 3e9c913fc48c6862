"""What an ONNX file holds, read without the package onnx.

The reader walks over the file's protobuf and knows only the fields that it allows. A file is refused if it
holds anything else: another operator or domain, a function, control flow, or data in other files.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.deploy.read_bundle import Bundle, BundleError

ALLOWED = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND
    Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg Not Or
    PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(ALLOWED.split())
FLOAT, UINT8 = 1, 2  # element types in ONNX
DEEPEST = 8  # messages within messages; a plain graph has five

# The allowed fields of each kind of message: "number:name".
FIELDS = {
    "model": (
        "1:ir_version 2:producer 3:producer_version 4:domain 5:model_version 6:doc 7:graph 8:opset 14:entry"
    ),
    "opset": "1:domain 2:version",
    "entry": "1:key 2:text",
    "graph": ("1:node 2:name 5:tensor 10:doc 11:input 12:output 13:value_info 14:quantization 16:entry"),
    "node": "1:inputs 2:outputs 3:name 4:op_type 5:attribute 6:doc 7:domain 9:entry",
    "attribute": "1:name 2:f 3:i 4:s 5:tensor 7:floats 8:ints 9:strings 13:doc 20:kind",
    "tensor": (
        "1:dims 2:data_type 4:floats 5:int32s 7:int64s 8:name 9:raw 10:doubles 11:uint64s 12:doc 16:entry"
    ),
    "value": "1:name 2:type 3:doc 4:entry",
    "type": "1:tensor_type 6:denotation",
    "tensor_type": "1:elem_type 2:shape",
    "shape": "1:dim",
    "dim": "1:dim_value 2:dim_param 3:denotation",
}
NAMES = {
    kind: {int(number): name for number, name in (pair.split(":") for pair in pairs.split())}
    for kind, pairs in FIELDS.items()
}
# fields that hold messages, and the kind of these
KINDS = {kind: kind for kind in FIELDS} | {"input": "value", "output": "value", "value_info": "value"}


@dataclass(frozen=True)
class Value:
    """A declared input or output. A free dimension is given by its name."""

    elem_type: int
    shape: tuple[int | str, ...]


@dataclass
class Graph:
    """What has to be known about a file before it is run."""

    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)


def read(content: bytes, *, name: str) -> Graph:
    """The graph of an ONNX file; raises BundleError if it holds anything that is not allowed."""
    graph = Graph()
    try:
        _model(memoryview(content), graph)
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise BundleError(f"{name} is not a plain ONNX network: {error}. Nothing of it was run.") from error
    return graph


def check(content: bytes, bundle: Bundle, *, name: str) -> Graph:
    """The graph, if its inputs, outputs and metadata are those of the bundle."""
    graph = read(content, name=name)
    _check_interface(graph, bundle, name)
    for key in ("classes", *sorted(set(graph.metadata) & set(bundle.facts) - {"schema", "classes"})):
        try:
            is_same = json.loads(graph.metadata.get(key, "")) == bundle.facts[key]
        except (ValueError, RecursionError):
            is_same = False
        if not is_same:
            raise BundleError(f"{name}: {key!r} in its metadata is not what bundle.json says.")
    return graph


def _check_interface(graph: Graph, bundle: Bundle, name: str) -> None:
    if set(graph.inputs) != {"image"} or set(graph.outputs) != {"logits", "probabilities"}:
        raise BundleError(
            f"{name} takes {sorted(graph.inputs)} and gives {sorted(graph.outputs)}, "
            "so it is not a student of this project."
        )
    answer = (FLOAT, (len(bundle.classes),))
    image = (UINT8, (bundle.size, bundle.size, bundle.channels))
    declared = graph.inputs | graph.outputs
    for what, (elem_type, shape) in {"image": image, "logits": answer, "probabilities": answer}.items():
        value = declared[what]
        is_free = bool(value.shape) and isinstance(value.shape[0], str)
        if value.elem_type != elem_type or value.shape[1:] != shape or not is_free:
            kind = "uint8" if elem_type == UINT8 else "float32"
            raise BundleError(
                f"{name}: {what!r} is not declared as {kind} N x {' x '.join(map(str, shape))}."
            )


def _model(content: memoryview, graph: Graph) -> None:
    for what, value in _fields(content, "model"):
        if what == "entry":
            key, text = _pair(_message(value))
            if key in graph.metadata:
                raise ValueError(f"its metadata holds {key!r} twice")
            graph.metadata[key] = text
        elif what == "graph":
            _graph(_message(value), graph)
        elif what == "opset":
            _walk(_message(value), what)


def _graph(content: memoryview, graph: Graph) -> None:
    for what, value in _fields(content, "graph"):
        if what == "node":
            _node(_message(value), graph)
        elif what in ("input", "output"):
            name, declared = _value(_message(value))
            values = graph.inputs if what == "input" else graph.outputs
            if name in values:
                raise ValueError(f"{what} {name!r} is declared twice")
            values[name] = declared
        elif what in KINDS:
            _walk(_message(value), KINDS[what])


def _node(content: memoryview, graph: Graph) -> None:
    operator = ""
    for what, value in _fields(content, "node"):
        if what == "op_type":
            operator = _text(value)
            if operator not in OPERATORS:
                raise ValueError(f"it holds the operator {operator[:60]!r}, which is not allowed")
        elif what == "domain" and _text(value) not in ("", "ai.onnx"):
            raise ValueError(f"it holds an operator of the domain {_text(value)[:60]!r}")
        elif what in KINDS:
            _walk(_message(value), KINDS[what])
    if not operator:
        raise ValueError("it holds a node without an operator")
    graph.operators.add(operator)


def _value(content: memoryview) -> tuple[str, Value]:
    name, elem_type, shape = "", 0, []
    for what, value in _fields(content, "value"):
        if what == "name":
            name = _text(value)
        elif what == "type":
            for _, tensor_type in _fields(_message(value), "type"):
                for part, inner in _fields(_message(tensor_type), "tensor_type"):
                    if part == "elem_type":
                        elem_type = _number(inner)
                    else:
                        shape = [_dim(_message(dim)) for _, dim in _fields(_message(inner), "shape")]
    return name, Value(elem_type, tuple(shape))


def _dim(content: memoryview) -> int | str:
    size: int | str = ""
    for what, value in _fields(content, "dim"):
        size = _number(value) if what == "dim_value" else _text(value) if what == "dim_param" else size
    return size


def _pair(content: memoryview) -> tuple[str, str]:
    pair = {what: _text(value) for what, value in _fields(content, "entry")}
    return pair.get("key", ""), pair.get("text", "")


def _walk(content: memoryview, kind: str, depth: int = 0) -> None:
    """Check that a message holds only what is allowed. Nothing in it is needed."""
    if depth > DEEPEST:
        raise ValueError("its messages are nested too deeply")
    for what, value in _fields(content, kind):
        if what in KINDS:
            _walk(_message(value), KINDS[what], depth + 1)


def _fields(content: memoryview, kind: str) -> Iterator[tuple[str, int | memoryview]]:
    """The fields of a message of a known kind, in the order of the file."""
    names, position = NAMES[kind], 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if number not in names:
            raise ValueError(f"field {number} of a message {kind!r} is not allowed")
        value: int | memoryview
        if wire == 0:
            value, position = _varint(content, position)
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
            if wire == 2:
                length, position = _varint(content, position)
            if length < 0 or position + length > len(content):
                raise ValueError(f"its bytes are damaged in a message {kind!r}")
            value = content[position : position + length]
            position += length
        yield names[number], value


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            raise ValueError("it ends too early")
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("it holds a number that does not end")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it holds a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("it holds a message where a number should be")
    return value
