"""How much faster the exported student is than torch, on this machine.

    python -m benchmarks.export_speed [NET:SIZE ...] [--seconds 1] [--rounds 5] [--threads 1] [--write FILE.md]

For each net: float and int8 ONNX against plain and tuned eager of the same network, each in a process of its own. A round opens fresh
processes, which take short turns; its ratio is that of the medians of CPU time, and the table shows the median of the rounds' ratios
and, in brackets, the smallest and largest. Every variant goes from raw uint8 pixels to probabilities; `bare` eager is given float pixels
that were normalised before, so that the table holds against the network alone, too. The weights are random: time doesn't depend on them.
Where OpenVINO is installed it runs the same files, in two columns more.

The last columns say how much room is left: a network's multiplications a second as a share of those that onnxruntime's product of two
large matrices does in the same round, in float and with uint8 times int8. Convolutions as such do the same multiplications, so a share
near 100 % is as fast as this CPU gets.
"""

import argparse
import copy
import importlib.util
import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks import products
from benchmarks.tell import tell
from pipeline import benchmark, nets, timing
from pipeline.export import int8, machine, onnx_format
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.functional import normalise

NETS = ("resnet8x4:32", "torchvision:resnet18:224", "torchvision:mobilenet_v2:224")
CLASSES = 100
RUNTIMES = {"onnx": "", "openvino": "OpenVINO "}  # and what a column says before the file
# ratios to reach at batch 1 on one thread: float and int8 to bare eager, int8 to eager with its preprocessing
TARGETS = {"resnet8x4:32": (1.7, 5.5, 6.0), "torchvision:resnet18:224": (1.7, 5.5, 6.0), "torchvision:mobilenet_v2:224": (4.0, 8.0, 6.0)}


SIDE = 768  # of the matrices: large enough for full speed, small enough for the cache
PRODUCTS = {"bare eager": "float", "onnx": "float", "int8": "int8"}  # which one a variant is held against


class Measured(NamedTuple):
    net: str
    batch: int
    milliseconds: dict[str, float]  # median of the rounds
    rounds: list[dict[str, float]]  # milliseconds of each
    megabytes: dict[str, float]
    parameters: int
    macs: int  # of an image

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """Median, smallest and largest over the rounds."""
        ratios = sorted(each[slow] / each[fast] for each in self.rounds)
        return statistics.median(ratios), ratios[0], ratios[-1]

    def of_product(self, form: str) -> tuple[float, float, float]:
        """Multiplications a second, over those of the matrix product."""
        middle, low, high = self.ratio(f"{PRODUCTS[form]} product", form)
        scale = self.batch * self.macs / SIDE**3
        return scale * middle, scale * low, scale * high


def load(name: str, size: int) -> Deployable:
    """The net with statistics of its own activations, as after training."""
    torch.manual_seed(0)
    net = nets.build(name, classes=CLASSES)
    deployed = Deployable(net.train(), (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        deployed(torch.tensor(pictures(8, size)))
    net.eval().requires_grad_(False)
    return deployed.eval()


def pictures(n: int, size: int) -> np.ndarray:
    coarse = torch.rand((n, 3, 8, 8), generator=torch.Generator().manual_seed(0)) * 255
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return smooth.byte().permute(0, 2, 3, 1).contiguous().numpy()


def bare(folder: Path, size: int) -> timing.Opened:
    deployed = restored(folder, size)
    prepared: dict[int, torch.Tensor] = {}

    def run(images: np.ndarray) -> list[np.ndarray]:
        pixels = prepared.get(len(images))
        if pixels is None:
            pixels = prepared[len(images)] = normalise(torch.from_numpy(images), deployed.mean, deployed.std).contiguous()
        with torch.inference_mode():
            return [deployed.net(pixels).numpy()]

    return run, {}


def restored(folder: Path, size: int) -> Deployable:
    """Loaded in the process that measures it."""
    told = json.loads((folder / "net.json").read_text())
    deployed = Deployable(nets.build(told["net"], classes=CLASSES), (0.5,) * 3, (0.25,) * 3)
    deployed.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    deployed.net.eval().requires_grad_(False)
    return deployed.eval()


def measure(name: str, size: int, batches: Sequence[int], *, seconds: float, rounds: int, threads: int) -> list[Measured]:
    images = pictures(max(batches), size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counted = export_apart(name, size, folder)
        megabytes = {form: (folder / f"{form}.onnx").stat().st_size / 1e6 for form in ("onnx", "int8")}
        np.save(folder / "images.npy", images)
        found: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
        for _ in tqdm(range(rounds), desc=name, disable=None, leave=False):
            for batch, row in one_round(folder, size, images, batches, seconds=seconds, threads=threads).items():
                found[batch].append(row)
    return [
        Measured(name, batch, {form: statistics.median(row[form] for row in rows) for form in rows[0]}, rows, megabytes, **counted)
        for batch, rows in found.items()
    ]


def export_apart(name: str, size: int, folder: Path) -> dict[str, int]:
    """Parameters and multiplications. In a process that ends: what the exporters load and start must not be there when this one forks."""

    def opening() -> timing.Opened:
        deployed = load(name, size)
        (folder / "net.json").write_text(json.dumps({"net": name}))
        torch.save(deployed.state_dict(), folder / "weights.pt")
        exported = Deployable(plain_pools(copy.deepcopy(deployed.net)), (0.5,) * 3, (0.25,) * 3)
        onnx_format.write(exported, folder / "onnx.onnx", size=size, channels=3, classes=CLASSES, metadata={})
        int8.write(folder / "onnx.onnx", folder / "int8.onnx", pictures(32, size), portable=False, metadata={})
        counted = {"parameters": benchmark.parameters(deployed.net), "macs": int(benchmark.macs(deployed, pictures(1, size)))}
        return lambda images: [images], {"counted": counted}

    with benchmark._forked(opening, 1, pictures(1, size)) as process:
        return process.ask({})["counted"]


def matrix_product(form: str, threads: int) -> timing.Opened:
    """onnxruntime's product of two square matrices; it looks at no image."""
    import onnxruntime

    content, options = products.model(form, [products.Shape(SIDE, SIDE, SIDE)]), products.options(threads)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {}), {}


def one_round(
    folder: Path, size: int, images: np.ndarray, batches: Sequence[int], *, seconds: float, threads: int
) -> dict[int, dict[str, float]]:
    """Batch to milliseconds of CPU time of each variant."""
    with ExitStack() as stack:
        processes: dict[tuple[str, str], benchmark.Process] = {}
        for runtime, form in product(filter(importlib.util.find_spec, RUNTIMES), ("onnx", "int8")):
            processes["", RUNTIMES[runtime] + form] = stack.enter_context(
                benchmark._fresh(runtime, folder / f"{form}.onnx", threads, folder / "images.npy")
            )
        for form in sorted(set(PRODUCTS.values())):
            processes["", f"{form} product"] = stack.enter_context(
                benchmark._forked(partial(matrix_product, form, threads), threads, images)
            )
        load_it = partial(restored, folder, size)
        for form, opening in (
            ("bare eager", partial(bare, folder, size)),
            ("eager", partial(benchmark._plain, load_it)),
            ("tuned eager", partial(benchmark._tuned, load_it)),
        ):
            processes["", form] = stack.enter_context(benchmark._forked(opening, threads, images))
        for process in processes.values():
            process.ask({})
        timed = {batch: benchmark._take_turns(processes, batch, seconds) for batch in batches}
        return {batch: {form: row["cpu_ms"] for (_, form), row in rows.items()} for batch, rows in timed.items()}


def table(results: Sequence[Measured], *, rounds: int, threads: int) -> str:
    def share(measured: Measured, form: str) -> str:
        middle, low, high = measured.of_product(form)
        return f"{middle:.0%} [{low:.0%}, {high:.0%}]"

    def ratio(measured: Measured, slow: str, fast: str, target: float = 0.0) -> str:
        middle, low, high = measured.ratio(slow, fast)
        reached = "" if not target else " ✓" if middle >= target else f" (below {target:g})"
        return f"{middle:.2f} [{low:.2f}, {high:.2f}]{reached}"

    cpu = machine.cpu()
    others = [form for form in ("OpenVINO onnx", "OpenVINO int8") if form in results[0].milliseconds]
    headings = (
        "net, batch", "bare eager ms", "ONNX ms", "int8 ms", "ONNX / bare", "int8 / bare", "ONNX / tuned", "int8 / tuned",
        "int8 / eager with preprocessing", "size ratio", *(f"{form} / bare" for form in others),
        "bare eager of float product", "ONNX of float product", "int8 of int8 product",
    )  # fmt: skip
    lines = [
        f"{cpu['model']} ({', '.join(cpu['flags'])}), {threads} thread, torch {torch.__version__.partition('+')[0]}, Python "
        f"{platform.python_version()}; {rounds} rounds of fresh interleaved processes, CPU time, median [smallest, largest].",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for measured in results:
        targets: Any = TARGETS.get(measured.net, (0.0, 0.0, 0.0)) if measured.batch == 1 and threads == 1 else (0.0, 0.0, 0.0)
        smaller = measured.megabytes["onnx"] / measured.megabytes["int8"]
        enough = " ✓" if smaller >= 3.5 else " (below 3.5)" if measured.parameters >= 1e6 else ""
        cells = (
            f"{measured.net}, {measured.batch}",
            *(f"{measured.milliseconds[form]:.3g}" for form in ("bare eager", "onnx", "int8")),
            ratio(measured, "bare eager", "onnx", targets[0]),
            ratio(measured, "bare eager", "int8", targets[1]),
            ratio(measured, "tuned eager", "onnx"),
            ratio(measured, "tuned eager", "int8"),
            ratio(measured, "eager", "int8", targets[2]),
            f"{smaller:.2f}{enough}",
            *(ratio(measured, "bare eager", form) for form in others),
            *(share(measured, form) for form in PRODUCTS),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_speed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("nets", nargs="*", default=NETS, metavar="NET:SIZE")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 32))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each variant, batch and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for net in given.nets:
        name, _, size = net.rpartition(":")
        measured = measure(name, int(size), given.batches, seconds=given.seconds, rounds=given.rounds, threads=given.threads)
        results += [each._replace(net=net) for each in measured]
    tell(table(results, rounds=given.rounds, threads=given.threads), given.write)


if __name__ == "__main__":
    main()
