"""How fast and how big: the student in each format beside its teacher, on this machine's CPU.

Each variant has a process of its own, since variants in one process change each other's speed; the processes take short turns, so that a
busy moment of the machine hits all of them alike. ONNX files run in fresh processes without torch; networks in torch run in forks of this
one, taken before it has computed anything. Plain eager is torch as people call it; tuned eager has channels last and an allocator that
keeps its memory, without which torch spends much of a large batch on page faults and any comparison with it flatters.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import nn

from pipeline import timing
from pipeline.export import machine
from pipeline.export.deployable import Deployable
from pipeline.functional import normalise
from pipeline.inputs import InputError, Settings

TURN = 0.02
ROOT = Path(__file__).parents[1]

Load = Callable[[], Deployable]


class BenchmarkConfig(Settings):
    batches: tuple[PositiveInt, ...] = (1, 32)  # batch 1 is always measured: it is the headline
    seconds: float = Field(0.3, gt=0)  # for each variant at each batch
    threads: int = Field(1, ge=1)


def measure(bundle: Path, student: Load, teacher: Load, images: np.ndarray, cfg: BenchmarkConfig) -> dict[str, Any]:
    """{"metrics", "details"} of the student in `bundle`, of the networks that `student` and `teacher` load (evaluation mode, CPU)."""
    formats = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["formats"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        np.save(folder / "images.npy", images)

        def fresh(runtime: str, file: Path) -> Process:
            return stack.enter_context(_fresh(runtime, file, cfg.threads, folder / "images.npy"))

        def forked(opening: Callable[[], timing.Opened]) -> Process:
            return stack.enter_context(_forked(opening, cfg.threads, images))

        with _forked(partial(_count, {"student": student, "teacher": teacher}, images[:1]), cfg.threads, images) as counter:
            counted = counter.ask({})
        processes: dict[tuple[str, str], Process] = {}
        for form in ("onnx", "int8"):
            if form in formats and formats[form].get("accepted", True):
                processes["student", form] = fresh("onnx", bundle / formats[form]["file"])
        if importlib.util.find_spec("openvino"):
            for _, form in list(processes):
                processes["student", f"openvino {form}"] = fresh("openvino", bundle / formats[form]["file"])
        if "torchscript" in formats:
            script = bundle / formats["torchscript"]["file"]
            processes["student", "torchscript"] = forked(partial(_torchscript, script))
        for variant, load in (("student", student), ("teacher", teacher)):
            processes[variant, "eager"] = forked(partial(_plain, load))
            processes[variant, "tuned eager"] = forked(partial(_tuned, load))

        told = {key: process.ask({}) for key, process in processes.items()}
        rows = []
        for batch in sorted({1, *cfg.batches}):
            for key, timed in _take_turns(processes, batch, cfg.seconds).items():
                rows.append({"variant": key[0], "format": key[1], "batch": batch, **timed, "size_mb": told[key]["size_mb"]})

    teachers = [row for row in rows if row["variant"] == "teacher" and row["batch"] == 1]
    answers = {key: np.array(told[key].pop("logits")) for key in processes}
    opened = [
        {
            "variant": key[0],
            "format": key[1],
            **told[key],
            "memory_mb": process.memory_mb,
            "error": _error(answers[key], answers[key[0], "eager"]),
        }
        for key, process in processes.items()
    ]
    return {
        "metrics": _headline(rows, counted["student"]),
        "details": {
            "rows": rows,
            "opened": opened,
            "teacher": {"latency_ms": min(row["median_ms"] for row in teachers), "size_mb": teachers[0]["size_mb"], **counted["teacher"]},
            "threads": cfg.threads,
            "cpu": machine.cpu(),
            "load": os.getloadavg()[0],
        },
    }


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, images: np.ndarray) -> float:
    """Multiply-accumulates of convolutions and matrix products for these images."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.tensor(images))
    return counter.get_total_flops() / 2


@dataclass
class Process:
    """The other end of `timing.serve`."""

    name: str
    asks: IO[str]
    answers: IO[str]
    memory_mb: float = 0.0

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self.asks.write(json.dumps(question) + "\n")
            self.asks.flush()
            line = self.answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(f"benchmark: the process that measures {self.name} ended without an answer; was it out of memory?")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise InputError(f"benchmark: {self.name} can't be measured: {told['error']}")
        return told


@contextmanager
def _fresh(runtime: str, file: Path, threads: int, images: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "pipeline.timing", runtime, str(file.absolute()), str(threads), str(images)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        assert child.stdin is not None
        assert child.stdout is not None
        yield Process(file.name, child.stdin, child.stdout)


@contextmanager
def _forked(opening: Callable[[], timing.Opened], threads: int, images: np.ndarray) -> Iterator[Process]:
    asks, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(asks[1])
            os.close(answers[0])
            torch.set_num_threads(threads)
            with open(asks[0]) as questions, open(answers[1], "w") as told:
                timing.serve(opening, images, questions, told)
        finally:
            os._exit(0)  # nothing of the parent's is cleaned up here
    os.close(asks[0])
    os.close(answers[1])
    try:
        with open(asks[1], "w") as questions, open(answers[0]) as told:
            yield Process("torch", questions, told)
    finally:
        os.waitpid(pid, 0)


def _plain(load: Load) -> timing.Opened:
    """As people call it: pixels normalised, channels first."""
    deployed = load()
    net, mean, std = deployed.net, deployed.mean, deployed.std

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            logits = net(normalise(torch.from_numpy(images), mean, std).contiguous())
            return logits.numpy(), logits.softmax(1).numpy()

    return run, {"size_mb": _megabytes(net)}


def _tuned(load: Load) -> timing.Opened:
    """The fastest that eager gets without changing the network."""
    keep_memory()
    deployed = load()
    net, mean, std = deployed.net.to(memory_format=torch.channels_last), deployed.mean, deployed.std

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            logits = net(normalise(torch.from_numpy(images), mean, std).contiguous(memory_format=torch.channels_last))
            return logits.numpy(), logits.softmax(1).numpy()

    return run, {"size_mb": _megabytes(net)}


def _torchscript(path: Path) -> timing.Opened:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # torch has deprecated the format
        script = torch.jit.load(str(path), map_location="cpu")

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            return [output.numpy() for output in script(torch.from_numpy(images))]

    return run, {"size_mb": path.stat().st_size / 1e6}


def _count(networks: Mapping[str, Load], image: np.ndarray) -> timing.Opened:
    """No variant, but in a process of its own too: torch's counter loads its compiler, which would weigh on what is measured."""
    told = {}
    for name, load in networks.items():
        deployed = load()
        told[name] = {"parameters_m": parameters(deployed.net) / 1e6, "macs_m": macs(deployed, image) / 1e6}
    return lambda images: [images], told


def keep_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the system, page by page, at every call; elsewhere nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(parameter, value)


def _take_turns(processes: Mapping[tuple[str, str], Process], batch: int, seconds: float) -> dict[tuple[str, str], dict[str, Any]]:
    """What each variant takes for a batch, in short turns."""
    wall: dict[tuple[str, str], list[float]] = {key: [] for key in processes}
    cpu: dict[tuple[str, str], list[float]] = {key: [] for key in processes}
    while waiting := [key for key, taken in wall.items() if sum(taken) < seconds or len(taken) < timing.FEWEST]:
        for key in waiting:
            told = processes[key].ask({"batch": batch, "seconds": TURN})
            wall[key] += told["wall"]
            cpu[key] += told["cpu"]
            processes[key].memory_mb = told["memory_mb"]
    return {key: _summary(batch, wall[key], cpu[key]) for key in processes}


def _summary(batch: int, wall: list[float], cpu: list[float]) -> dict[str, Any]:
    median = float(np.median(wall))
    return {
        "median_ms": 1000 * median,
        "p95_ms": 1000 * float(np.percentile(wall, 95)),
        "cpu_ms": 1000 * float(np.median(cpu)),
        "images_per_s": batch / median,
        "n": len(wall),
    }


def _headline(rows: list[dict[str, Any]], counted: Mapping[str, float]) -> dict[str, float]:
    """The float file's numbers, int8's beside them where it ships; speedups are over tuned eager, for one image, by CPU time."""
    own = {(row["format"], row["batch"]): row for row in rows if row["variant"] == "student"}
    largest = max(batch for _, batch in own)
    metrics = {
        "latency_ms": own["onnx", 1]["median_ms"],
        "throughput": own["onnx", largest]["images_per_s"],
        "size_mb": own["onnx", 1]["size_mb"],
        **counted,
        "speedup": own["tuned eager", 1]["cpu_ms"] / own["onnx", 1]["cpu_ms"],
    }
    if ("int8", 1) in own:
        metrics |= {
            "int8_latency_ms": own["int8", 1]["median_ms"],
            "int8_throughput": own["int8", largest]["images_per_s"],
            "int8_size_mb": own["int8", 1]["size_mb"],
            "int8_speedup": own["tuned eager", 1]["cpu_ms"] / own["int8", 1]["cpu_ms"],
        }
    return metrics


def _error(logits: np.ndarray, truth: np.ndarray) -> float:
    """How far an answer is from plain eager's, of its largest logit: what is fast and wrong must be seen."""
    return float(np.abs(logits - truth).max() / max(float(np.abs(truth).max()), 1e-30))


def _megabytes(net: nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers())) / 1e6
