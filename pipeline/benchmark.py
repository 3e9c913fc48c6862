"""How fast and how big: the student in each format beside its teacher, on this machine's CPU."""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import nn

from pipeline.inputs import Settings

Run = Callable[[np.ndarray], object]

FEWEST = 3
TURN = 0.02


class BenchmarkConfig(Settings):
    batches: tuple[PositiveInt, ...] = (1, 32)  # batch 1 is always measured: it is the headline
    seconds: float = Field(0.3, gt=0)  # for each variant at each batch
    threads: int = Field(1, ge=1)


def measure(bundle: Path, eager: nn.Module, teacher: nn.Module, images: np.ndarray, cfg: BenchmarkConfig) -> dict[str, Any]:
    """{"metrics", "details"} of the student in `bundle`; `eager` and `teacher` take uint8 images and are in evaluation mode, on the CPU."""
    formats = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["formats"]
    onnx_path = bundle / formats["onnx"]["file"]
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads)
    try:
        session, onnx = _open_onnx(onnx_path, images[:1], cfg.threads)
        runs = {
            ("student", "onnx"): (session, onnx_path.stat().st_size),
            ("student", "eager"): (_eager(eager), _bytes(eager)),
            ("teacher", "eager"): (_eager(teacher), _bytes(teacher)),
        }
        if "torchscript" in formats:
            path = bundle / formats["torchscript"]["file"]
            runs["student", "torchscript"] = (_open_torchscript(path), path.stat().st_size)
        rows = []
        for batch in sorted({1, *cfg.batches}):
            pixels = np.ascontiguousarray(images[np.arange(batch) % len(images)])
            timed = _take_turns([run for run, _ in runs.values()], pixels, cfg.seconds)
            for (variant, form), (_, size), seconds in zip(runs, runs.values(), timed, strict=True):
                rows.append(_row(variant, form, batch, seconds, size))
    finally:
        torch.set_num_threads(threads)

    ours = [row for row in rows if row["format"] == "onnx"]
    first = next(row for row in rows if row["variant"] == "teacher")
    metrics = {
        "latency_ms": ours[0]["median_ms"],
        "throughput": ours[-1]["images_per_s"],
        "size_mb": ours[0]["size_mb"],
        "parameters_m": parameters(eager) / 1e6,
        "macs_m": macs(eager, images[:1]) / 1e6,
    }
    big = {
        "latency_ms": first["median_ms"],
        "size_mb": first["size_mb"],
        "parameters_m": parameters(teacher) / 1e6,
        "macs_m": macs(teacher, images[:1]) / 1e6,
    }
    return {"metrics": metrics, "details": {"rows": rows, "teacher": big, "onnx": onnx, "threads": cfg.threads}}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, images: np.ndarray) -> float:
    """Multiply-accumulates of convolutions and matrix products for these images."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.tensor(images))
    return counter.get_total_flops() / 2


def _open_onnx(path: Path, image: np.ndarray, threads: int) -> tuple[Run, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle spinning steals time from the other variants
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()

    def run(images: np.ndarray) -> object:
        return session.run(None, {"image": images})

    run(image)
    done = time.perf_counter()
    return run, {"providers": session.get_providers(), "load_ms": 1000 * (loaded - start), "first_ms": 1000 * (done - loaded)}


def _open_torchscript(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # torch has deprecated the format
        return _eager(torch.jit.load(str(path), map_location="cpu"))


def _eager(module: nn.Module) -> Run:
    def run(images: np.ndarray) -> object:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.tensor(images))]

    return run


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _take_turns(runs: list[Run], pixels: np.ndarray, seconds: float) -> list[list[float]]:
    """Seconds of single calls. The variants take short turns, so that a busy moment of the machine hits all of them alike."""
    for run in runs:
        start = time.perf_counter()
        run(pixels)
        if time.perf_counter() - start < seconds:
            run(pixels)  # TorchScript optimises in its second call
    times: list[list[float]] = [[] for _ in runs]
    while waiting := [i for i, taken in enumerate(times) if sum(taken) < seconds or len(taken) < FEWEST]:
        for i in waiting:
            end = time.perf_counter() + TURN
            while (start := time.perf_counter()) < end:
                runs[i](pixels)
                times[i].append(time.perf_counter() - start)
    return times


def _row(variant: str, form: str, batch: int, seconds: list[float], size: int) -> dict[str, Any]:
    median = float(np.median(seconds))
    return {
        "variant": variant,
        "format": form,
        "batch": batch,
        "median_ms": 1000 * median,
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        "images_per_s": batch / median,
        "n": len(seconds),
        "size_mb": size / 1e6,
    }
