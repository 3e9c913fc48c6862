"""How near the convolutions of an exported student are to the fastest that onnxruntime can do.

    python -m experiments.convolutions [NET:SIZE ...] [--rounds 5] [--runs 40] [--write FILE]

Each convolution is timed inside the network, at batch 1 on one thread, by onnxruntime's profiler. Beside it
stands onnxruntime's own matrix product of the same shape, which does as many multiplications: its rows are
the output pixels, its columns the output channels. A product looks for no neighbouring pixels and quantizes
nothing again. So a group of layers that takes no longer than its products cannot gain from another way to
compute it.

Depthwise convolutions have no such product. For a first layer in blocks (pipeline/export/blocks.py), the
multiplications with zeros count too.
"""

import json
import platform
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from experiments import products
from experiments._script import parser_of, print_table, with_range
from experiments.export_speed import CLASSES, NETS, export_apart, pictures
from experiments.products import Shape
from pipeline.export import machine

GROUPS = ("first layer", "pointwise", "dense", "depthwise")
WEIGHTS = {"Conv": 1, "FusedConv": 1, "QLinearConv": 3}  # the place of the weights among a node's inputs
COLUMNS = (
    "network",
    "layers",
    "number",
    "million multiplications",
    "ms",
    "billion a second",
    "products of the same shapes, ms",
    "ratio",
)


class Layer(NamedTuple):
    group: str
    shape: Shape
    convolution: list[float]  # microseconds of each round
    product: list[float]  # likewise; empty if there is no such product


class Node(NamedTuple):
    microseconds: float  # median
    facts: dict[str, Any]  # what the profiler says of it


class Weights(NamedTuple):
    dims: list[int]
    groups: int  # groups of channels


def layers(file: Path, images: np.ndarray, *, form: str, rounds: int, runs: int) -> list[Layer]:
    """The convolutions of an ONNX file in the order in which they run, timed."""
    weights = optimized(file)
    found: dict[str, Layer] = {}
    for _ in tqdm(range(rounds), desc=file.stem, disable=None, leave=False):
        nodes = profiled(file.read_bytes(), {"image": images[:1]}, file.parent, runs)
        convolutions = {name: node for name, node in nodes.items() if name in weights}
        shapes = {name: shape_of(weights[name].dims, node.facts) for name, node in convolutions.items()}
        compared = sorted({shape for name, shape in shapes.items() if weights[name].groups == 1})
        timed = profiled(products.model(form, compared), {}, file.parent, runs)
        for place, (name, node) in enumerate(convolutions.items()):
            group = group_of(weights[name], first=place == 0)
            layer = found.setdefault(name, Layer(group, shapes[name], [], []))
            layer.convolution.append(node.microseconds)
            if weights[name].groups == 1:
                layer.product.append(timed[f"product_{compared.index(shapes[name])}"].microseconds)
    return list(found.values())


def group_of(weights: Weights, *, first: bool) -> str:
    if first:
        return "first layer"
    if weights.groups > 1:
        return "depthwise"
    return "pointwise" if weights.dims[2:] == [1, 1] else "dense"


def optimized(file: Path) -> dict[str, Weights]:
    """The convolutions that onnxruntime makes of a file, by name."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file.with_suffix(".optimized"))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    constants = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return {
        node.name: Weights(
            constants[node.input[WEIGHTS[node.op_type]]],
            next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1),
        )
        for node in graph.node
        if node.op_type in WEIGHTS
    }


def profiled(model: bytes, inputs: Mapping[str, np.ndarray], folder: Path, runs: int) -> dict[str, Node]:
    """The nodes of a model in the order in which they run. The first quarter of the runs is not counted."""
    import onnxruntime

    options = onnxruntime.SessionOptions() if inputs else products.options(1)
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, dict(inputs))
    log = Path(session.end_profiling())
    taken: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, dict[str, Any]] = {}
    for event in json.loads(log.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken[name].append(event["dur"])
            facts[name] = event["args"]
    log.unlink()
    return {name: Node(statistics.median(times[runs // 4 :]), facts[name]) for name, times in taken.items()}


def shape_of(weights: Sequence[int], facts: Mapping[str, Any]) -> Shape:
    """The product with as many multiplications as a convolution."""
    (out,) = facts["output_type_shape"][0].values()
    channels_last = facts["op_name"] == "QLinearConv"
    rows = out[1] * out[2] if channels_last else out[2] * out[3]
    return Shape(rows, weights[0], weights[1] * weights[2] * weights[3])


def rows(net: str, form: str, found: Sequence[Layer]) -> list[str]:
    """A line of Markdown for each group of layers."""
    lines = []
    for group in GROUPS:
        own = [layer for layer in found if layer.group == group]
        if not own:
            continue
        macs = sum(layer.shape.macs for layer in own)
        convolutions = [
            sum(times) / 1000 for times in zip(*(layer.convolution for layer in own), strict=True)
        ]
        compared = [sum(times) / 1000 for times in zip(*(layer.product for layer in own), strict=True)]
        ratios = [a / b for a, b in zip(convolutions, compared, strict=True)] if compared else []
        cells = (
            f"{net}, {form}",
            group,
            str(len(own)),
            f"{macs / 1e6:.0f}",
            with_range(convolutions),
            with_range([macs / taken / 1e6 for taken in convolutions], 0),
            with_range(compared) if compared else "",
            with_range(ratios) if compared else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = parser_of("convolutions", __doc__)
    parser.add_argument("nets", nargs="*", default=NETS, metavar="NET:SIZE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=40, help="of the network and of the products in a round")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cpu = machine.cpu()
    lines = [
        f"{cpu['model']} ({', '.join(cpu['flags'])}), 1 thread, Python {platform.python_version()}, "
        f"{CLASSES} classes; {given.rounds} rounds of {given.runs} runs, the median run, sums over layers: "
        "median [smallest, largest].",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|" + "--:|" * (len(COLUMNS) - 2),
    ]
    for net in given.nets:
        name, _, size = net.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            export_apart(name, int(size), Path(folder))
            for form, file in (("float", "onnx.onnx"), ("int8", "int8.onnx")):
                images = pictures(1, int(size))
                found = layers(Path(folder) / file, images, form=form, rounds=given.rounds, runs=given.runs)
                lines += rows(net, form, found)
    print_table("\n".join(lines) + "\n", given.write)


if __name__ == "__main__":
    main()
