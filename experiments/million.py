"""A million tiny pictures from a table through stage prepare and one epoch of training: time, memory, disk.

    python -m experiments.million [--images 10000 100000 1000000] [--pixels 8] [--write FILE]

The pictures are noise, in a Parquet file that holds their bytes. A student learns from a teacher's answers
(method kd); both cost next to nothing, so that time and memory go into pictures. Each step is a process of
its own. The training reads from the store on the disk, as from one too large to be kept in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from experiments._peak import most_disk, peak_mb
from experiments._script import parser_of, print_table
from pipeline.data.augment import AugmentConfig
from pipeline.data.prepare import prepare
from pipeline.data.protocol import ProtocolConfig
from pipeline.data.sources import DataConfig
from pipeline.export import machine

CLASSES = 10
PART = 10_000  # rows of the table that are written at once


def table_of_pictures(folder: Path, count: int, pixels: int) -> None:
    """A Parquet file with pictures of noise as PPM, a few bytes more than their pixels."""
    import pyarrow
    from pyarrow import parquet

    kinds = {"image": pyarrow.binary(), "label": pyarrow.string()}
    random, head = np.random.default_rng(0), b"P6 %d %d 255\n" % (pixels, pixels)
    folder.mkdir()
    with parquet.ParquetWriter(folder / "table.parquet", pyarrow.schema(kinds)) as table:
        for start in range(0, count, PART):
            noise = random.integers(0, 256, (min(PART, count - start), pixels, pixels, 3), dtype=np.uint8)
            images = [head + each.tobytes() for each in noise]
            labels = [str(n % CLASSES) for n in range(start, start + len(images))]
            columns = [pyarrow.array(images, kinds["image"]), pyarrow.array(labels, kinds["label"])]
            table.write_table(pyarrow.table(columns, names=list(kinds)))


def preparing(folder: Path, pixels: int) -> None:
    cfg = DataConfig(source="manifest", root=str(folder / "raw"), table="table.parquet", size=pixels)
    prepare(cfg, folder / "store", work=folder / "work")


def training(folder: Path, pixels: int) -> None:
    import torch  # here, so that it does not count as memory of `prepare`

    from experiments.memory import train
    from pipeline.runs.context import Context

    torch.set_num_threads(1)
    with patch("pipeline.data.views.resident_bytes", lambda device: 0):
        augment = AugmentConfig(pad=1)
        train(Context.of_students(folder / "store", ProtocolConfig(), augment), epochs=1)


STEPS: dict[str, Callable[[Path, int], None]] = {"prepare": preparing, "an epoch of kd": training}


def measure(step: str, folder: Path, pixels: int) -> dict[str, float]:
    """In this process."""
    before, start, used = peak_mb(), time.perf_counter(), time.process_time()
    with most_disk(folder) as seen:
        STEPS[step](folder, pixels)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - used,
        "memory": peak_mb(),
        "before": before,
        "disk": max(seen) - seen[0],
    }


def in_a_process(step: str, folder: Path, pixels: int) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.million", "--of", step, str(folder), str(pixels)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(counts: Sequence[int], pixels: int) -> str:
    lines = [
        f"{machine.cpu()['model']}, one thread; pictures of {pixels} x {pixels} pixels. Peak memory of the "
        "process; disk at the peak, beyond the table of pictures.",
        "",
        "| images | step | seconds | CPU seconds | images/CPU s | memory, MB | of it before, MB | disk, MB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            table_of_pictures(Path(folder) / "raw", count, pixels)
            for step in STEPS:
                lines.append(_row(count, step, in_a_process(step, Path(folder), pixels)))
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def _row(count: int, step: str, found: dict[str, float]) -> str:
    found["rate"] = count / found["cpu"]
    numbers = [f"{found[key]:,.0f}" for key in ("seconds", "cpu", "rate", "memory", "before", "disk")]
    return f"| {count:,} | {step} | {' | '.join(numbers)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("million", __doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--pixels", type=int, default=8)
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--of", nargs=3, metavar=("STEP", "FOLDER", "PIXELS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.of:
        step, folder, pixels = given.of
        print(json.dumps(measure(step, Path(folder), int(pixels))))
        return
    print_table(table(given.images, given.pixels), given.write)


if __name__ == "__main__":
    main()
