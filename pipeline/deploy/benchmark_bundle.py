"""How fast a bundle answers on this machine. Each format runs in processes of its own, in turn."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.deploy.read_bundle import Bundle, BundleError, Format, open_bundle

if TYPE_CHECKING:  # the child process measures how long the import takes
    import numpy as np

    from pipeline.deploy.predictor import Predictor

LARGEST_BATCH = 32
CHILD = """
import time
begun = time.perf_counter()
import json, sys
from pipeline.deploy import benchmark_bundle, read_bundle
options = json.loads(sys.argv[1])
bundle = read_bundle.open_bundle(options.pop("folder"))
print(json.dumps(benchmark_bundle.measure(bundle, **options, begun=begun)))
"""


def command(folder: Path, *, threads: int, rounds: int, seconds: float) -> int:
    """What `benchmark` does: print a table of medians over `rounds` processes of each format."""
    bundle = open_bundle(folder)
    batches = sorted({1, min(LARGEST_BATCH, bundle.max_batch)})
    results: dict[Format, list[dict[str, Any]]] = {format: [] for format in bundle.formats}
    for _ in range(rounds):
        for format in bundle.formats:
            result = _in_a_process(folder, format, threads=threads, batches=batches, seconds=seconds)
            results[format].append(result)
    print(
        f"{bundle.name}, {threads} thread(s): medians of {rounds} processes for each format, "
        f"{seconds:g} s for each batch size [lowest to highest]"
    )
    print(
        f"{'format':<8}{'MB':>7}{'import':>9}{'load':>8}{'first':>8}{'memory':>9}   {'batch':>5}  "
        f"{'ms for a batch':<24}{'p95':>8}{'cpu ms':>10}{'images/s':>11}"
    )
    for format, found in results.items():
        head = _head(bundle, format, found)
        for line in _lines(found, batches):
            print(head + line)
            head = " " * len(head)
    return 0


def measure(
    bundle: Bundle, format: Format, *, threads: int, batches: list[int], seconds: float, begun: float
) -> dict[str, Any]:
    """The times of this process, which must have run nothing else.

    `begun` is the moment before its first import.
    """
    import numpy as np

    from pipeline.deploy.predictor import Predictor

    imported = time.perf_counter()
    predictor = Predictor(bundle, format=format, threads=threads)
    loaded = time.perf_counter()
    images = bundle.golden().images
    before = time.perf_counter()
    predictor.run(images[:1])
    first = time.perf_counter() - before
    memory = peak_memory()
    times = {}
    for batch in batches:
        pixels = np.resize(images, (batch, *images.shape[1:]))
        times[str(batch)] = _times(predictor, pixels, seconds)
    return {
        "import_ms": 1000 * (imported - begun),
        "load_ms": 1000 * (loaded - imported),
        "first_ms": 1000 * first,
        "memory_mb": memory,
        "batches": times,
    }


def peak_memory() -> float:
    """The most megabytes that this process has ever had in memory; 0 if the system cannot tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    try:  # on Linux this would count the memory of the parent too
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _head(bundle: Bundle, format: Format, results: list[dict[str, Any]]) -> str:
    size = bundle.facts["files"][bundle.facts["formats"][format]["file"]]["bytes"] / 1e6
    import_ms, load_ms, first_ms, memory_mb = (
        statistics.median(result[name] for result in results)
        for name in ("import_ms", "load_ms", "first_ms", "memory_mb")
    )
    start = f"{import_ms:>6.0f} ms{load_ms:>5.0f} ms{first_ms:>5.1f} ms{memory_mb:>6.0f} MB"
    return f"{format:<8}{size:>7.2f}{start}"


def _lines(results: list[dict[str, Any]], batches: list[int]) -> Iterator[str]:
    for batch in batches:
        times = [result["batches"][str(batch)] for result in results]
        medians = [each["median_ms"] for each in times]
        p95, cpu = (statistics.median(each[name] for each in times) for name in ("p95_ms", "cpu_ms"))
        middle = statistics.median(medians)
        spread = f"{middle:.3f} [{min(medians):.3f} to {max(medians):.3f}]"
        yield f"   {batch:>5}  {spread:<24}{p95:>8.3f}{cpu:>10.3f}{1000 * batch / middle:>11,.0f}"


def _times(predictor: "Predictor", pixels: "np.ndarray", seconds: float) -> dict[str, float]:
    taken: list[float] = []
    cpu = time.process_time()
    end = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < end:
        before = time.perf_counter()
        predictor.run(pixels)
        taken.append(1000 * (time.perf_counter() - before))
    cpu = time.process_time() - cpu  # unlike wall time, it hardly depends on other processes
    taken.sort()
    return {
        "cpu_ms": 1000 * cpu / len(taken),
        "median_ms": statistics.median(taken),
        "p95_ms": taken[int(0.95 * (len(taken) - 1))],
        "runs": len(taken),
    }


def _in_a_process(
    folder: Path, format: Format, *, threads: int, batches: list[int], seconds: float
) -> dict[str, Any]:
    options = {
        "folder": str(folder),
        "format": format,
        "threads": threads,
        "batches": batches,
        "seconds": seconds,
    }
    command = [sys.executable, "-c", CHILD, json.dumps(options)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr else "the process gave no reason"
        raise BundleError(f"{folder}: measuring {format} failed: {reason}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
