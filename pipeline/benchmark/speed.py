"""How fast and how large the student is in each format, beside its teacher, on this machine's CPU.

Each variant has a process of its own, because variants in one process change each other's speed. The
processes take short turns, so that a busy moment of the machine affects all of them alike. ONNX files run in
fresh processes without torch. Networks in torch run in forks of this process, made before it has computed
anything.

"eager" is torch as people call it. "tuned eager" uses channels last and an allocator that keeps its memory.
Without these, torch spends much of a large batch on page faults, and the speedups would look too large.
"""

import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pipeline.device import keep_memory
from pipeline.export import latency, machine, onnx_format, worker
from pipeline.export.deployable import Deployable, plain_pools
from pipeline.export.latency import Process, Times, closing_quietly, fresh, take_turns
from pipeline.files import save_array
from pipeline.functional import normalise
from pipeline.records.record import Result
from pipeline.settings import InputError, Settings

Load = Callable[[], Deployable]
Key = tuple[str, str]  # variant, format


class BenchmarkConfig(Settings):
    batches: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field(
        (1, 32), description="batch sizes; 1 is always measured"
    )
    seconds: float = Field(0.3, gt=0, le=3600, description="for each variant at each batch size")
    threads: int = Field(1, ge=1, le=4096)


@dataclass(frozen=True)
class Network:
    """A network to measure, and images (uint8 N x H x W x C) of the size that it takes."""

    load: Load  # in evaluation mode and on the CPU
    images: np.ndarray


def measure(bundle: Path, student: Network, teacher: Network, cfg: BenchmarkConfig) -> Result:
    """Measure the student in `bundle`, and the networks that `student` and `teacher` load."""
    facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    networks = {"student": student, "teacher": teacher}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for variant, network in networks.items():
            save_array(folder / f"{variant}.npy", network.images)
        with _forked(partial(_count, networks), cfg.threads, student.images) as counter:
            counts = counter.ask({})
        files = _exported(bundle, facts["formats"])
        refused = _export_teacher(teacher, folder / "teacher.onnx", cfg.threads)
        if not refused:
            files["teacher", "onnx"] = folder / "teacher.onnx"
        processes: dict[Key, Process] = {}
        for key, runtime, file in _runtimes(files):
            opening = fresh(runtime, file, cfg.threads, folder / f"{key[0]}.npy")
            processes[key] = stack.enter_context(opening)
        for key, opening_in_torch in _in_torch(bundle, facts["formats"], networks):
            images = networks[key[0]].images
            processes[key] = stack.enter_context(_forked(opening_in_torch, cfg.threads, images))
        opened = {key: process.ask({}) for key, process in processes.items()}
        rows = [
            _row(key, batch, _summary(batch, timed), opened[key]["size_mb"])
            for batch in sorted({1, *cfg.batches})
            for key, timed in take_turns(processes, batch, cfg.seconds).items()
        ]
        of_teacher = {} if refused else _latency_of_teacher(folder)
    return Result(
        metrics=_headline(rows, counts["student"], facts["latency"]["median_ms"]),
        details={
            "rows": rows,
            "opened": _openings(opened, processes),
            "teacher": _teacher(rows) | of_teacher | counts["teacher"],
            "threads": cfg.threads,
            "cpu": machine.cpu(),
            "load": os.getloadavg()[0],
        },
    )


def parameters(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, images: np.ndarray) -> float:
    """The number of multiply-accumulates in convolutions and matrix products for these images."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.tensor(images))
    return float(counter.get_total_flops()) / 2


def _exported(bundle: Path, formats: Mapping[str, Any]) -> dict[Key, Path]:
    """The student's ONNX files that may be deployed."""
    return {
        ("student", format): bundle / formats[format]["file"]
        for format in ("onnx", "int8")
        if format in formats and formats[format].get("accepted", True)
    }


def _runtimes(files: Mapping[Key, Path]) -> Iterator[tuple[Key, str, Path]]:
    """The files with the runtimes that are installed."""
    for key, file in files.items():
        yield key, "onnx", file
    if importlib.util.find_spec("openvino"):
        for (variant, format), file in files.items():
            yield (variant, f"openvino {format}"), "openvino", file


def _export_teacher(teacher: Network, file: Path, threads: int) -> str:
    """Write the teacher as an ONNX file, to be measured as students are; returns why it cannot be written.

    This needs a process of its own, for torch's exporter loads what would disturb the measurements.
    """
    try:
        with _forked(partial(_write_onnx, teacher.load, file), threads, teacher.images) as exporter:
            exporter.ask({})
    except InputError as error:
        return str(error)
    return ""


def _write_onnx(load: Load, file: Path) -> worker.Opened:
    deployed = load()
    plain_pools(deployed.net)

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        _, size, _, channels = images.shape
        logits = deployed.predict(images)
        onnx_format.write(deployed, file, size=size, channels=channels, classes=logits.shape[1], metadata={})
        return [logits]

    return run, {}


def _in_torch(
    bundle: Path, formats: Mapping[str, Any], networks: Mapping[str, Network]
) -> Iterator[tuple[Key, Callable[[], worker.Opened]]]:
    if "torchscript" in formats:
        yield ("student", "torchscript"), partial(_torchscript, bundle / formats["torchscript"]["file"])
    for variant, network in networks.items():
        yield (variant, "eager"), partial(_plain, network.load)
        yield (variant, "tuned eager"), partial(_tuned, network.load)


@contextmanager
def _forked(opening: Callable[[], worker.Opened], threads: int, images: np.ndarray) -> Iterator[Process]:
    questions, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(questions[1])
            os.close(answers[0])
            torch.set_num_threads(threads)
            with open(questions[0]) as read, open(answers[1], "w") as write:
                worker.serve(opening, images, read, write)
        finally:
            os._exit(0)  # the parent cleans up what belongs to it
    os.close(questions[0])
    os.close(answers[1])
    try:
        with closing_quietly(open(questions[1], "w")) as write, open(answers[0]) as read:
            yield Process("torch", write, read)
    finally:
        os.waitpid(pid, 0)


def _plain(load: Load) -> worker.Opened:
    """As people call it: normalised pixels, channels first."""
    deployed = load()
    net, mean, std = deployed.net, deployed.mean, deployed.std

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            logits = net(normalise(torch.from_numpy(images), mean, std).contiguous())
            return logits.numpy(), logits.softmax(1).numpy()

    return run, {"size_mb": _megabytes(net)}


def _tuned(load: Load) -> worker.Opened:
    """As fast as eager gets without changing the network."""
    keep_memory()
    deployed = load()
    net, mean, std = deployed.net.to(memory_format=torch.channels_last), deployed.mean, deployed.std

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            pixels = normalise(torch.from_numpy(images), mean, std)
            logits = net(pixels.contiguous(memory_format=torch.channels_last))
            return logits.numpy(), logits.softmax(1).numpy()

    return run, {"size_mb": _megabytes(net)}


def _torchscript(path: Path) -> worker.Opened:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # torch has deprecated the format
        script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            return [output.numpy() for output in script(torch.from_numpy(images))]

    return run, {"size_mb": path.stat().st_size / 1e6}


def _count(networks: Mapping[str, Network]) -> worker.Opened:
    """Parameters and multiplications of the networks, counted in a process of their own.

    torch's counter loads torch's compiler, which would disturb what is measured later.
    """
    counts = {}
    for name, network in networks.items():
        deployed, image = network.load(), network.images[:1]
        count, products = parameters(deployed.net), macs(deployed, image)
        # those of an ONNX teacher are out of sight
        counts[name] = {"parameters_m": count / 1e6, "macs_m": products / 1e6} if count else {}
    return lambda images: [images], counts


def _summary(batch: int, taken: Times) -> dict[str, Any]:
    median = float(np.median(taken.wall))
    return {
        "median_ms": 1000 * median,
        "p95_ms": 1000 * float(np.percentile(taken.wall, 95)),
        "cpu_ms": 1000 * float(np.median(taken.cpu)),
        "images_per_s": batch / median,
        "n": len(taken.wall),
    }


def _row(key: Key, batch: int, timed: Mapping[str, Any], size_mb: float) -> dict[str, Any]:
    variant, format = key
    return {"variant": variant, "format": format, "batch": batch, **timed, "size_mb": size_mb}


def _openings(opened: Mapping[Key, dict[str, Any]], processes: Mapping[Key, Process]) -> list[dict[str, Any]]:
    """What it took to open each variant, its memory, and how far its answer is from plain eager's."""
    answers = {key: np.array(facts["logits"]) for key, facts in opened.items()}
    rows = []
    for (variant, format), facts in opened.items():
        others = {name: value for name, value in facts.items() if name != "logits"}
        memory = processes[variant, format].memory_mb
        error = _error(answers[variant, format], answers[variant, "eager"])
        rows.append({"variant": variant, "format": format, **others, "memory_mb": memory, "error": error})
    return rows


def _teacher(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The teacher's best time for one image in torch, and its size there."""
    single = [row for row in rows if row["variant"] == "teacher" and row["batch"] == 1]
    in_torch = [row for row in single if row["format"].endswith("eager")]
    return {"latency_ms": min(row["median_ms"] for row in in_torch), "size_mb": in_torch[0]["size_mb"]}


def _latency_of_teacher(folder: Path) -> dict[str, Any]:
    """Latency and size of its ONNX file, measured as those of the student's bundle."""
    file = folder / "teacher.onnx"
    took = latency.measure({"onnx": file}, np.load(folder / "teacher.npy")[:1])
    return {"latency_ms": took["onnx"], "size_mb": file.stat().st_size / 1e6, "file": "onnx"}


def _headline(
    rows: list[dict[str, Any]], counts: Mapping[str, float], latency_ms: Mapping[str, float]
) -> dict[str, float]:
    """The metrics: those of the float file, and of int8 if it ships.

    The latency is the bundle's own, so that it is one number everywhere. A speedup is the CPU time of tuned
    eager for one image, divided by the file's.
    """
    own = {(row["format"], row["batch"]): row for row in rows if row["variant"] == "student"}
    largest = max(batch for _, batch in own)
    metrics = {
        "latency_ms": latency_ms["onnx"],
        "throughput": own["onnx", largest]["images_per_s"],
        "size_mb": own["onnx", 1]["size_mb"],
        **counts,
        "speedup": own["tuned eager", 1]["cpu_ms"] / own["onnx", 1]["cpu_ms"],
    }
    if ("int8", 1) in own:
        metrics |= {
            "int8_latency_ms": latency_ms["int8"],
            "int8_throughput": own["int8", largest]["images_per_s"],
            "int8_size_mb": own["int8", 1]["size_mb"],
            "int8_speedup": own["tuned eager", 1]["cpu_ms"] / own["int8", 1]["cpu_ms"],
        }
    return metrics


def _error(logits: np.ndarray, truth: np.ndarray) -> float:
    """The largest difference of a logit, as a share of the largest. It shows a fast but wrong variant."""
    return float(np.abs(logits - truth).max() / max(float(np.abs(truth).max()), 1e-30))


def _megabytes(net: nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers())) / 1e6
