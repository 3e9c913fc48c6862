"""One variant of a network in a process of its own. It is opened, then timed in short turns when asked.

    python -m pipeline.export.worker onnx|openvino FILE THREADS IMAGES.npy

This module imports neither torch nor pydantic, so that an ONNX file is measured in a process like the one
that it will serve in.
"""

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pipeline.deploy.benchmark_bundle import peak_memory

Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # uint8 images to logits and more
Opened = tuple[Run, dict[str, Any]]  # with facts about it
FEWEST = 3


def serve(opening: Callable[[], Opened], images: np.ndarray, questions: TextIO, answers: TextIO) -> None:
    """Open a variant, then answer questions: one JSON object a line.

    A question has `batch` and `seconds`; its answer has the times of single calls. An error is an answer too.
    """

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        questions.readline()
        run, facts = _open(opening, images)
        answer(facts)
        warm = set()
        for line in questions:
            question = json.loads(line)
            pixels = _batch(images, question["batch"])
            if question["batch"] not in warm:
                run(pixels), run(pixels)  # TorchScript optimizes in its second call
                warm.add(question["batch"])
            wall, cpu = turn(run, pixels, question["seconds"])
            answer({"wall": wall, "cpu": cpu, "memory_mb": peak_memory()})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})


def turn(run: Run, pixels: np.ndarray, seconds: float) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of single calls, until `seconds` have passed."""
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
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # it takes time from other variants
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, {"image": images})
        return outputs

    return run, {
        "import_ms": 1000 * imported,
        "size_mb": path.stat().st_size / 1e6,
        "providers": session.get_providers(),
    }


def openvino(path: Path, threads: int) -> Opened:
    start = time.perf_counter()
    import openvino as ov

    imported = time.perf_counter() - start
    # float32 as the others: by default it computes in bfloat16 if the CPU can
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.compile_model(path, "CPU", hints).create_infer_request()

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        return [request.infer({"image": images})[name] for name in ("logits", "probabilities")]

    return run, {"import_ms": 1000 * imported, "size_mb": path.stat().st_size / 1e6}


def _open(opening: Callable[[], Opened], images: np.ndarray) -> Opened:
    """The variant, with what it took to open it and its first answer."""
    start = time.perf_counter()
    run, facts = opening()
    loaded = time.perf_counter()
    logits = run(_batch(images, 1))[0]
    first = time.perf_counter()
    return run, {
        "load_ms": 1000 * (loaded - start) - facts.get("import_ms", 0.0),
        "first_ms": 1000 * (first - loaded),
        **facts,
        "logits": np.asarray(logits).ravel().tolist(),
    }


def _batch(images: np.ndarray, n: int) -> np.ndarray:
    return np.ascontiguousarray(images[np.arange(n) % len(images)])


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # it ends without a word when nobody reads its answers
    runtime, file, threads, images = sys.argv[1:]
    opening = {"onnx": onnx, "openvino": openvino}[runtime]
    serve(lambda: opening(Path(file), int(threads)), np.load(images), sys.stdin, sys.stdout)
