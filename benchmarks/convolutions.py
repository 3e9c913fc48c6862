"""How near an exported student's convolutions are to what onnxruntime can do.

    python -m benchmarks.convolutions [NET:SIZE ...] [--rounds 5] [--runs 40] [--write FILE.md]

At batch 1 on one thread: the time of every convolution in the network, by onnxruntime's profiler, beside that of onnxruntime's own matrix
product of the same shape, with as many multiplications: as rows the pixels that come out, as columns the output channels. The product
neither looks for neighbours nor quantizes again what it has; a group of layers that takes no longer has nothing to gain from being
computed otherwise. Where each channel is alone (depthwise) there is no such product. Of a first layer in blocks (pipeline/export/blocks.py)
the multiplications with zeros are counted, too.
"""

import argparse
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

from benchmarks import products
from benchmarks.export_speed import CLASSES, NETS, export_apart, pictures
from benchmarks.products import Shape
from benchmarks.tell import tell
from pipeline.export import machine

GROUPS = ("first layer", "pointwise", "dense", "depthwise")


class Layer(NamedTuple):
    group: str
    shape: Shape
    convolution: list[float]  # microseconds, a round each
    product: list[float]


def layers(file: Path, images: np.ndarray, *, form: str, rounds: int, runs: int) -> list[Layer]:
    weights = optimized(file)
    found: dict[str, Layer] = {}
    for _ in tqdm(range(rounds), desc=f"{file.stem}", disable=None, leave=False):
        seen = {
            name: node for name, node in profiled(file.read_bytes(), {"image": images[:1]}, file.parent, runs).items() if name in weights
        }
        shapes = {name: shape_of(weights[name][0], node[1]) for name, node in seen.items()}
        wanted = sorted({shape for name, shape in shapes.items() if weights[name][1] == 1})
        timed = profiled(products.model(form, wanted), {}, file.parent, runs)
        for place, (name, (taken, _)) in enumerate(seen.items()):
            dims, alone = weights[name]
            group = "first layer" if place == 0 else "depthwise" if alone > 1 else "pointwise" if dims[2:] == [1, 1] else "dense"
            layer = found.setdefault(name, Layer(group, shapes[name], [], []))
            layer.convolution.append(taken)
            if alone == 1:
                layer.product.append(timed[f"product_{wanted.index(shapes[name])}"][0])
    return list(found.values())


def optimized(file: Path) -> dict[str, tuple[list[int], int]]:
    """The convolutions that onnxruntime makes of a file: the shape of their weights, and the number of groups of channels."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file.with_suffix(".optimized"))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    constants = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    place = {"Conv": 1, "FusedConv": 1, "QLinearConv": 3}
    return {
        node.name: (constants[node.input[place[node.op_type]]], next((each.i for each in node.attribute if each.name == "group"), 1))
        for node in graph.node
        if node.op_type in place
    }


def profiled(model: bytes, given: Mapping[str, np.ndarray], folder: Path, runs: int) -> dict[str, tuple[float, dict[str, Any]]]:
    """Median microseconds of each node and what the profiler says of it, in the order in which they run."""
    import onnxruntime

    options = onnxruntime.SessionOptions() if given else products.options(1)
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, dict(given))
    log = Path(session.end_profiling())
    taken: dict[str, list[float]] = defaultdict(list)
    said: dict[str, dict[str, Any]] = {}
    for event in json.loads(log.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken[name].append(event["dur"])
            said[name] = event["args"]
    log.unlink()
    return {name: (statistics.median(times[runs // 4 :]), said[name]) for name, times in taken.items()}


def shape_of(weights: Sequence[int], said: Mapping[str, Any]) -> Shape:
    (out,) = said["output_type_shape"][0].values()
    rows = out[1] * out[2] if said["op_name"] == "QLinearConv" else out[2] * out[3]  # integers come with the channels last
    return Shape(rows, weights[0], weights[1] * weights[2] * weights[3])


def table(net: str, form: str, found: Sequence[Layer]) -> list[str]:
    lines = []
    for group in GROUPS:
        own = [layer for layer in found if layer.group == group]
        if not own:
            continue
        macs = sum(layer.shape.macs for layer in own)
        rounds = [sum(times) / 1000 for times in zip(*(layer.convolution for layer in own), strict=True)]
        cells = [f"{net}, {form}", group, str(len(own)), f"{macs / 1e6:.0f}", spread(rounds, "{:.2f}")]
        cells.append(spread([macs / taken / 1e6 for taken in rounds], "{:.0f}"))
        theirs = [sum(times) / 1000 for times in zip(*(layer.product for layer in own), strict=True)]
        cells += [spread(theirs, "{:.2f}"), spread([a / b for a, b in zip(rounds, theirs, strict=True)], "{:.2f}")] if theirs else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("nets", nargs="*", default=NETS, metavar="NET:SIZE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=40, help="of the network, and of the products, in a round")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cpu = machine.cpu()
    lines = [
        f"{cpu['model']} ({', '.join(cpu['flags'])}), 1 thread, Python {platform.python_version()}, {CLASSES} classes; {given.rounds} "
        f"rounds of {given.runs} runs, the median run, sums over layers: median [smallest, largest].",
        "",
        "| network | layers | number | million multiplications | ms | billion a second | products of the same shapes, ms | ratio |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for net in given.nets:
        name, _, size = net.rpartition(":")
        with tempfile.TemporaryDirectory() as place:
            export_apart(name, int(size), Path(place))
            for form, file in (("float", "onnx.onnx"), ("int8", "int8.onnx")):
                found = layers(Path(place) / file, pictures(1, int(size)), form=form, rounds=given.rounds, runs=given.runs)
                lines += table(net, form, found)
    tell("\n".join(lines) + "\n", given.write)


if __name__ == "__main__":
    main()
