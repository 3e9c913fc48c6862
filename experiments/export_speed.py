"""How much faster an exported student is than torch, on this machine.

    python -m experiments.export_speed [NET:SIZE ...] [--seconds 1] [--rounds 5] [--threads 1] [--write FILE]

For each network, float and int8 ONNX are compared with plain and tuned eager torch. A round starts a fresh
process for each variant, and the processes take short turns. The ratio of a round is that of the medians of
CPU time. The table shows the median of these ratios, with the smallest and the largest in brackets. Every
variant goes from raw uint8 pixels to probabilities, except `bare eager`: it gets pixels that are already
normalised, so its time is that of the network alone. The weights are random, since time does not depend on
them. Where OpenVINO is installed, it runs the same files, in two more columns.

The last columns show how much room is left: the multiplications a second of a network, as a share of those of
onnxruntime's product of two large matrices in the same round. Float is compared with a float product, int8
with uint8 times int8. Convolutions do the same multiplications, so a share near 100 % is as fast as this CPU
gets.
"""

import copy
import importlib.util
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from experiments import products
from experiments._script import parser_of, print_table
from pipeline import nets
from pipeline.benchmark import speed
from pipeline.export import int8, latency, machine, onnx_format, worker
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.functional import normalise

NETS = ("resnet8x4:32", "torchvision:resnet18:224", "torchvision:mobilenet_v2:224")
CLASSES = 100
RUNTIMES = {"onnx": "", "openvino": "OpenVINO "}  # module -> what its columns start with
# ratios to reach at batch 1 on one thread: float and int8 over bare eager, int8 over eager with preprocessing
TARGETS = {
    "resnet8x4:32": (1.7, 5.5, 6.0),
    "torchvision:resnet18:224": (1.7, 5.5, 6.0),
    "torchvision:mobilenet_v2:224": (4.0, 8.0, 6.0),
}
SIDE = 768  # of the matrices: large enough for full speed, small enough for the cache
# variant -> the product that it is compared with
PRODUCTS = {"bare eager": "float", "onnx": "float", "int8": "int8"}


class Measured(NamedTuple):
    net: str
    batch: int
    milliseconds: dict[str, float]  # by variant: median of the rounds
    rounds: list[dict[str, float]]  # milliseconds of each round by variant
    megabytes: dict[str, float]  # by format
    parameters: int
    macs: int  # of one image

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """Median, smallest and largest over the rounds."""
        ratios = sorted(each[slow] / each[fast] for each in self.rounds)
        return statistics.median(ratios), ratios[0], ratios[-1]

    def of_product(self, form: str) -> tuple[float, float, float]:
        """Multiplications a second, as a share of those of the product: median, smallest, largest."""
        middle, low, high = self.ratio(f"{PRODUCTS[form]} product", form)
        scale = self.batch * self.macs / SIDE**3
        return scale * middle, scale * low, scale * high


def load(name: str, size: int) -> Deployable:
    """The network with batch norm statistics of its own activations, as after training."""
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


def open_bare(folder: Path) -> worker.Opened:
    """The network alone: each batch is normalised once, before it is timed."""
    deployed = load_saved(folder)
    prepared: dict[int, torch.Tensor] = {}

    def run(images: np.ndarray) -> list[np.ndarray]:
        pixels = prepared.get(len(images))
        if pixels is None:
            pixels = prepared[len(images)] = normalise(
                torch.from_numpy(images), deployed.mean, deployed.std
            ).contiguous()
        with torch.inference_mode():
            return [deployed.net(pixels).numpy()]

    return run, {}


def load_saved(folder: Path) -> Deployable:
    """The network that `export_apart` saved, loaded in the process that measures it."""
    name = json.loads((folder / "net.json").read_text())["net"]
    deployed = Deployable(nets.build(name, classes=CLASSES), (0.5,) * 3, (0.25,) * 3)
    deployed.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    deployed.net.eval().requires_grad_(False)
    return deployed.eval()


def measure(
    name: str, size: int, batches: Sequence[int], *, seconds: float, rounds: int, threads: int
) -> list[Measured]:
    """One network at each size of batch."""
    images = pictures(max(batches), size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = export_apart(name, size, folder)
        megabytes = {form: (folder / f"{form}.onnx").stat().st_size / 1e6 for form in ("onnx", "int8")}
        np.save(folder / "images.npy", images)
        found: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
        for _ in tqdm(range(rounds), desc=name, disable=None, leave=False):
            timed = one_round(folder, images, batches, seconds=seconds, threads=threads)
            for batch, row in timed.items():
                found[batch].append(row)
    medians = {
        batch: {variant: statistics.median(row[variant] for row in rows) for variant in rows[0]}
        for batch, rows in found.items()
    }
    return [Measured(name, batch, medians[batch], rows, megabytes, **counts) for batch, rows in found.items()]


def export_apart(name: str, size: int, folder: Path) -> dict[str, int]:
    """Save and export a network; its parameters and multiplications.

    This is done in a process that then ends. What the exporters load and start would otherwise be there when
    this process forks.
    """

    def opening() -> worker.Opened:
        deployed = load(name, size)
        (folder / "net.json").write_text(json.dumps({"net": name}))
        torch.save(deployed.state_dict(), folder / "weights.pt")
        exported = Deployable(plain_pools(copy.deepcopy(deployed.net)), (0.5,) * 3, (0.25,) * 3)
        onnx_file, int8_file = folder / "onnx.onnx", folder / "int8.onnx"
        onnx_format.write(exported, onnx_file, size=size, channels=3, classes=CLASSES, metadata={})
        int8.write(onnx_file, int8_file, pictures(32, size), portable=False, metadata={})
        counts = {
            "parameters": speed.parameters(deployed.net),
            "macs": int(speed.macs(deployed, pictures(1, size))),
        }
        return lambda images: [images], {"counts": counts}

    with speed._forked(opening, 1, pictures(1, size)) as process:
        counts: dict[str, int] = process.ask({})["counts"]
        return counts


def open_product(form: str, threads: int) -> worker.Opened:
    """onnxruntime's product of two square matrices; it ignores the images."""
    import onnxruntime

    content, options = products.model(form, [products.Shape(SIDE, SIDE, SIDE)]), products.options(threads)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {}), {}


def one_round(
    folder: Path, images: np.ndarray, batches: Sequence[int], *, seconds: float, threads: int
) -> dict[int, dict[str, float]]:
    """Milliseconds of CPU time by batch and variant."""
    with ExitStack() as stack:
        processes: dict[tuple[str, str], latency.Process] = {}
        for runtime, form in product(filter(importlib.util.find_spec, RUNTIMES), ("onnx", "int8")):
            processes["", RUNTIMES[runtime] + form] = stack.enter_context(
                latency.fresh(runtime, folder / f"{form}.onnx", threads, folder / "images.npy")
            )
        openings: dict[str, Callable[[], worker.Opened]] = {
            f"{form} product": partial(open_product, form, threads) for form in sorted(set(PRODUCTS.values()))
        }
        openings["bare eager"] = partial(open_bare, folder)
        openings["eager"] = partial(speed._plain, partial(load_saved, folder))
        openings["tuned eager"] = partial(speed._tuned, partial(load_saved, folder))
        for variant, opening in openings.items():
            processes["", variant] = stack.enter_context(speed._forked(opening, threads, images))
        for process in processes.values():
            process.ask({})
        timed = {batch: latency.take_turns(processes, batch, seconds) for batch in batches}
        return {
            batch: {variant: speed._summary(batch, taken)["cpu_ms"] for (_, variant), taken in times.items()}
            for batch, times in timed.items()
        }


def table(results: Sequence[Measured], *, rounds: int, threads: int) -> str:
    """Markdown: a line for each network and batch."""
    cpu = machine.cpu()
    others = [form for form in ("OpenVINO onnx", "OpenVINO int8") if form in results[0].milliseconds]
    headings = (
        "net, batch",
        "bare eager ms",
        "ONNX ms",
        "int8 ms",
        "ONNX / bare",
        "int8 / bare",
        "ONNX / tuned",
        "int8 / tuned",
        "int8 / eager with preprocessing",
        "size ratio",
        *(f"{form} / bare" for form in others),
        "bare eager of float product",
        "ONNX of float product",
        "int8 of int8 product",
    )
    lines = [
        f"{cpu['model']} ({', '.join(cpu['flags'])}), {threads} thread, torch "
        f"{torch.__version__.partition('+')[0]}, Python {platform.python_version()}; {rounds} rounds of "
        "fresh interleaved processes, CPU time, median [smallest, largest].",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
        *(f"| {' | '.join(cells(measured, others, threads))} |" for measured in results),
    ]
    return "\n".join(lines) + "\n"


def cells(measured: Measured, others: Sequence[str], threads: int) -> list[str]:
    """A line of the table. The targets hold at batch 1 on one thread."""
    has_targets = measured.net in TARGETS and measured.batch == 1 and threads == 1
    float_target, int8_target, whole_target = TARGETS[measured.net] if has_targets else (0.0, 0.0, 0.0)
    smaller = measured.megabytes["onnx"] / measured.megabytes["int8"]
    enough = " ✓" if smaller >= 3.5 else " (below 3.5)" if measured.parameters >= 1e6 else ""
    return [
        f"{measured.net}, {measured.batch}",
        *(f"{measured.milliseconds[variant]:.3g}" for variant in ("bare eager", "onnx", "int8")),
        ratio(measured, "bare eager", "onnx", float_target),
        ratio(measured, "bare eager", "int8", int8_target),
        ratio(measured, "tuned eager", "onnx"),
        ratio(measured, "tuned eager", "int8"),
        ratio(measured, "eager", "int8", whole_target),
        f"{smaller:.2f}{enough}",
        *(ratio(measured, "bare eager", variant) for variant in others),
        *("{:.0%} [{:.0%}, {:.0%}]".format(*measured.of_product(variant)) for variant in PRODUCTS),
    ]


def ratio(measured: Measured, slow: str, fast: str, target: float = 0.0) -> str:
    middle, low, high = measured.ratio(slow, fast)
    verdict = "" if not target else " ✓" if middle >= target else f" (below {target:g})"
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]{verdict}"


def main() -> None:
    parser = parser_of("export_speed", __doc__)
    parser.add_argument("nets", nargs="*", default=NETS, metavar="NET:SIZE")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 32))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each variant, batch and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for net in given.nets:
        name, _, size = net.rpartition(":")
        measured = measure(
            name, int(size), given.batches, seconds=given.seconds, rounds=given.rounds, threads=given.threads
        )
        results += [each._replace(net=net) for each in measured]
    print_table(table(results, rounds=given.rounds, threads=given.threads), given.write)


if __name__ == "__main__":
    main()
