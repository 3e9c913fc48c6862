"""How fast a bundle answers on this machine: each format in processes of its own, in turn."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.deploy.bundle import Bundle, BundleError, Format, open_bundle

MEASURED = ("import_ms", "load_ms", "first_ms", "memory_mb")


CHILD = """
import time
begun = time.perf_counter()
import json, sys
from pipeline.deploy import bench, bundle
given = json.loads(sys.argv[1])
print(json.dumps(bench.measure(bundle.open_bundle(given.pop("folder")), **given, begun=begun)))
"""


def command(folder: Path, *, threads: int, rounds: int, seconds: float) -> int:
    """What `bench` does: a table of medians over `rounds` processes a format."""
    bundle = open_bundle(folder)
    batches = sorted({1, min(32, bundle.max_batch)})
    found: dict[Format, list[dict[str, Any]]] = {format: [] for format in bundle.formats}
    for _ in range(rounds):
        for format in bundle.formats:
            found[format].append(_in_a_process(folder, format, threads=threads, batches=batches, seconds=seconds))
    print(f"{bundle.name} on {threads} thread(s), medians of {rounds} processes of {seconds:g} s a batch size [lowest to highest]")
    print(
        f"{'format':<8}{'MB':>7}{'import':>9}{'load':>8}{'first':>8}{'memory':>9}   batch  ms a batch"
        + " " * 15
        + "p95    cpu ms   images/s"
    )
    for format, results in found.items():
        size = bundle.facts["files"][bundle.facts["formats"][format]["file"]]["bytes"] / 1e6
        start = [statistics.median(result[name] for result in results) for name in MEASURED]
        head = f"{format:<8}{size:>7.2f}{start[0]:>6.0f} ms{start[1]:>5.0f} ms{start[2]:>5.1f} ms{start[3]:>6.0f} MB"
        for batch in batches:
            medians = [result["batches"][str(batch)]["median_ms"] for result in results]
            p95, processor = (statistics.median(result["batches"][str(batch)][name] for result in results) for name in ("p95_ms", "cpu_ms"))
            middle = statistics.median(medians)
            spread = f"{middle:.3f} [{min(medians):.3f} to {max(medians):.3f}]"
            print(f"{head}   {batch:>5}  {spread:<24}{p95:>8.3f}{processor:>10.3f}{1000 * batch / middle:>11,.0f}")
            head = " " * len(head)
    return 0


def measure(bundle: Bundle, format: Format, *, threads: int, batches: list[int], seconds: float, begun: float) -> dict[str, Any]:
    """The times of this process, which has run nothing else; `begun` is when it began to import numpy and all that follows."""
    import numpy as np

    from pipeline.deploy.predictor import Predictor

    imported = time.perf_counter()
    predictor = Predictor(bundle, format=format, threads=threads)
    loaded = time.perf_counter()
    images = bundle.golden().images
    before = time.perf_counter()
    predictor.run(images[:1])
    first = time.perf_counter() - before
    memory = _peak_memory()
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


def _times(predictor: Any, pixels: Any, seconds: float) -> dict[str, float]:
    taken: list[float] = []
    processor = time.process_time()
    end = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < end:
        before = time.perf_counter()
        predictor.run(pixels)
        taken.append(1000 * (time.perf_counter() - before))
    processor = 1000 * (time.process_time() - processor) / len(taken)  # what it takes from others, and all it would take if alone
    taken.sort()
    return {"cpu_ms": processor, "median_ms": statistics.median(taken), "p95_ms": taken[int(0.95 * (len(taken) - 1))], "runs": len(taken)}


def _in_a_process(folder: Path, format: Format, *, threads: int, batches: list[int], seconds: float) -> dict[str, Any]:
    given = {"folder": str(folder), "format": format, "threads": threads, "batches": batches, "seconds": seconds}
    command = [sys.executable, "-c", CHILD, json.dumps(given)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})  # noqa: S603
    if done.returncode:
        raise BundleError(f"{folder}: measuring {format} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else 'no word why'}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _peak_memory() -> float:
    """In MB; 0 where the system doesn't say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
