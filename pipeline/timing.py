"""One variant of a network in a process of its own: opened, then timed in short turns whenever the benchmark asks for one.

    python -m pipeline.timing onnx|openvino FILE THREADS IMAGES.npy

Imports neither torch nor pydantic, so that an ONNX file is measured in a process like the one it will serve in.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # uint8 images to logits and more
Opened = tuple[Run, dict[str, Any]]  # and what there is to tell about it
FEWEST = 3


def serve(opening: Callable[[], Opened], images: np.ndarray, asks: TextIO, answers: TextIO) -> None:
    """Answer each line of `asks`, {"batch", "seconds"}, with the seconds of single calls; whatever goes wrong is an answer too."""

    def answer(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    try:
        asks.readline()
        start = time.perf_counter()
        run, told = opening()
        loaded = time.perf_counter()
        logits = run(_batch(images, 1))[0]
        first = time.perf_counter()
        took = {"load_ms": 1000 * (loaded - start) - told.get("import_ms", 0.0), "first_ms": 1000 * (first - loaded)}
        answer(took | told | {"logits": np.asarray(logits).ravel().tolist()})
        warm = set()
        for line in asks:
            asked = json.loads(line)
            pixels = _batch(images, asked["batch"])
            if asked["batch"] not in warm:
                run(pixels), run(pixels)  # TorchScript optimises in its second call
                warm.add(asked["batch"])
            wall, cpu = turn(run, pixels, asked["seconds"])
            answer({"wall": wall, "cpu": cpu, "memory_mb": peak_memory()})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})


def turn(run: Run, pixels: np.ndarray, seconds: float) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of single calls, until `seconds` are over."""
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + seconds
    while not wall or time.perf_counter() < end:
        before, start = time.process_time(), time.perf_counter()
        run(pixels)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - before)
    return wall, cpu


def onnx(path: Path, threads: int) -> Opened:
    start = time.perf_counter()
    import onnxruntime

    imported = time.perf_counter() - start
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle spinning steals time from the other variants
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        return session.run(None, {"image": images})

    return run, {"import_ms": 1000 * imported, "size_mb": path.stat().st_size / 1e6, "providers": session.get_providers()}


def openvino(path: Path, threads: int) -> Opened:
    start = time.perf_counter()
    import openvino as ov

    imported = time.perf_counter() - start
    # float32 as the others: left alone it computes in bfloat16 where the CPU can
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.compile_model(path, "CPU", hints).create_infer_request()

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        return [request.infer({"image": images})[name] for name in ("logits", "probabilities")]

    return run, {"import_ms": 1000 * imported, "size_mb": path.stat().st_size / 1e6}


def peak_memory() -> float:
    """Most megabytes this process ever had in memory."""
    try:
        # getrusage would count what the parent had when it started this process
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _batch(images: np.ndarray, n: int) -> np.ndarray:
    return np.ascontiguousarray(images[np.arange(n) % len(images)])


if __name__ == "__main__":
    runtime, file, threads, images = sys.argv[1:]
    opening = {"onnx": onnx, "openvino": openvino}[runtime]
    serve(lambda: opening(Path(file), int(threads)), np.load(images), sys.stdin, sys.stdout)
