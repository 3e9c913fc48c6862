"""How much faster the exported student is than torch, on this machine.

    python -m benchmarks.export_speed [NET:SIZE ...] [--seconds 1] [--rounds 5] [--threads 1] [--write FILE.md]

For each net: float and int8 ONNX against plain and tuned eager of the same network, each in a process of its own. A round opens fresh
processes, which take short turns; its ratio is that of the medians of CPU time, and the table shows the median of the rounds' ratios
and, in brackets, the smallest and largest. Every variant goes from raw uint8 pixels to probabilities; `bare` eager is given float pixels
that were normalised before, so that the table holds against the network alone, too. The weights are random: time doesn't depend on them.
Where OpenVINO is installed it runs the same files, in two columns more.
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

from pipeline import benchmark, nets, timing
from pipeline.checkpoint import atomic_file
from pipeline.export import int8, machine, onnx_format
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.functional import normalise

NETS = ("resnet8x4:32", "torchvision:resnet18:224", "torchvision:mobilenet_v2:224")
CLASSES = 100
RUNTIMES = {"onnx": "", "openvino": "OpenVINO "}  # and what a column says before the file
# ratios to reach at batch 1 on one thread: float and int8 to bare eager, int8 to eager with its preprocessing
TARGETS = {"resnet8x4:32": (1.7, 5.5, 6.0), "torchvision:resnet18:224": (1.7, 5.5, 6.0), "torchvision:mobilenet_v2:224": (4.0, 8.0, 6.0)}


class Measured(NamedTuple):
    net: str
    batch: int
    milliseconds: dict[str, float]  # median of the rounds
    rounds: list[dict[str, float]]  # milliseconds of each
    megabytes: dict[str, float]
    parameters: int

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """Median, smallest and largest over the rounds."""
        ratios = sorted(each[slow] / each[fast] for each in self.rounds)
        return statistics.median(ratios), ratios[0], ratios[-1]


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
        parameters = export_apart(name, size, folder)
        megabytes = {form: (folder / f"{form}.onnx").stat().st_size / 1e6 for form in ("onnx", "int8")}
        np.save(folder / "images.npy", images)
        found: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
        for _ in tqdm(range(rounds), desc=name, disable=None, leave=False):
            for batch, row in one_round(folder, size, images, batches, seconds=seconds, threads=threads).items():
                found[batch].append(row)
    return [
        Measured(
            name, batch, {variant: statistics.median(row[variant] for row in rows) for variant in rows[0]}, rows, megabytes, parameters
        )
        for batch, rows in found.items()
    ]


def export_apart(name: str, size: int, folder: Path) -> int:
    """In a process that ends: what the exporters load and start must not be there when this one forks."""

    def opening() -> timing.Opened:
        deployed = load(name, size)
        (folder / "net.json").write_text(json.dumps({"net": name}))
        torch.save(deployed.state_dict(), folder / "weights.pt")
        exported = Deployable(plain_pools(copy.deepcopy(deployed.net)), (0.5,) * 3, (0.25,) * 3)
        onnx_format.write(exported, folder / "onnx.onnx", size=size, channels=3, classes=CLASSES, metadata={})
        int8.write(folder / "onnx.onnx", folder / "int8.onnx", pictures(32, size), portable=False, metadata={})
        return lambda images: [images], {"parameters": benchmark.parameters(deployed.net)}

    with benchmark._forked(opening, 1, pictures(1, size)) as process:
        return process.ask({})["parameters"]


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
    def ratio(measured: Measured, slow: str, fast: str, target: float = 0.0) -> str:
        middle, low, high = measured.ratio(slow, fast)
        reached = "" if not target else " ✓" if middle >= target else f" (below {target:g})"
        return f"{middle:.2f} [{low:.2f}, {high:.2f}]{reached}"

    cpu = machine.cpu()
    others = [form for form in ("OpenVINO onnx", "OpenVINO int8") if form in results[0].milliseconds]
    headings = (
        "net, batch", "bare eager ms", "ONNX ms", "int8 ms", "ONNX / bare", "int8 / bare", "ONNX / tuned", "int8 / tuned",
        "int8 / eager with preprocessing", "size ratio", *(f"{form} / bare" for form in others),
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
    text = table(results, rounds=given.rounds, threads=given.threads)
    print(text)
    if given.write:
        with atomic_file(given.write) as file:
            file.write_text(text)


if __name__ == "__main__":
    main()
