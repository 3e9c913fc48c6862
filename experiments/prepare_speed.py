"""Seconds, memory and disk of stage prepare for 1,000 photographs, on one core and on two, kept in two forms.

    python -m experiments.prepare_speed [--images FOLDER] [--size 224] [--cores 1 2] [--write FILE]

Each measurement is a process of its own, and they take turns. FOLDER is laid out as for `source: folder`;
without it the photographs are made up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from experiments._peak import most_disk, peak_mb
from experiments._photographs import made_up
from experiments._script import parser_of, print_table, with_range
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import Store
from pipeline.export import machine

COUNT = 1000  # photographs that are made up
CORES = (1, 2)
BATCH = 64


def prepare_on(cores: int, cfg: DataConfig) -> dict[str, float]:
    """Prepare the images in this process, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        wall, used = time.perf_counter(), time.process_time()
        with most_disk(Path(folder)) as seen:
            manifest = prepare(cfg, Path(folder))
        wall, used = time.perf_counter() - wall, time.process_time() - used
        stored = sum(path.stat().st_size for path in Path(folder).glob("images.*"))
        peak, reading = peak_mb(), _reading(Path(folder))
    thousands = (sum(manifest["splits"].values()) + manifest["unlabelled"]) / 1000
    return {
        "wall": wall / thousands,
        "cpu": used / thousands,
        "stored_mb": stored / 1e6 / thousands,
        "disk_mb": max(seen) / thousands,
        "peak_mb": peak,
        "before_mb": before,
        "reading_ms": 1000 * reading,
    }


def _reading(folder: Path) -> float:
    """CPU seconds to read an image of the store, in batches of training."""
    images = Store.open(folder).images
    rows = np.random.default_rng(0).permutation(len(images))
    used = time.process_time()
    for start in range(0, len(rows), BATCH):
        images[rows[start : start + BATCH]]
    return (time.process_time() - used) / len(rows)


def in_a_process(cores: int, cfg: DataConfig) -> dict[str, float]:
    settings = cfg.model_dump_json(exclude_defaults=True)
    command = [sys.executable, "-m", "experiments.prepare_speed", "--on", str(cores), settings]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(cfg: DataConfig, rounds: int, chosen: Sequence[int] = CORES) -> str:
    forms: tuple[Literal["pixels", "jpeg"], ...] = ("pixels", "jpeg")
    found = [
        {
            (form, cores): in_a_process(cores, cfg.model_copy(update={"kept_as": form}))
            for form in forms
            for cores in chosen
        }
        for _ in range(rounds)
    ]
    lines = [
        f"{machine.cpu()['model']}, {cfg.size} x {cfg.size} pixels, for each 1,000 photographs. Medians, "
        "with the smallest and the largest value. The memory is the peak of the process, and the disk that "
        "of the folder. To read is to have an image of the store ready for its view.",
        "",
        "| kept as | cores | seconds | CPU seconds | memory, MB | of it before, MB | disk, MB | store, MB "
        "| to read one, CPU ms | n |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for form, cores in found[0]:
        columns = {key: [each[form, cores][key] for each in found] for key in found[0][form, cores]}
        cells = [with_range(columns["wall"]), with_range(columns["cpu"]), with_range(columns["peak_mb"], 0)]
        cells += [f"{statistics.median(columns[key]):.0f}" for key in ("before_mb", "disk_mb", "stored_mb")]
        cells.append(with_range(columns["reading_ms"], 2))
        lines.append(f"| {form} | {cores} | {' | '.join(cells)} | {rounds} |")
    return "\n".join(lines) + "\n"


def save_photographs(folder: Path) -> None:
    for n, picture in enumerate(islice(made_up(COUNT), COUNT)):
        place = folder / f"class {n % 10}"
        place.mkdir(exist_ok=True)
        picture.save(place / f"{n:04}.jpg", quality=90)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("prepare_speed", __doc__)
    parser.add_argument("--images", help="a folder of photographs, in place of made up ones")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=CORES, help="how many, one after the other")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--on", nargs=2, metavar=("CORES", "SETTINGS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.on:
        print(json.dumps(prepare_on(int(given.on[0]), DataConfig.model_validate_json(given.on[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if not given.images:
            save_photographs(Path(folder))
        cfg = DataConfig(source="folder", root=given.images or folder, size=given.size)
        print_table(table(cfg, given.rounds, given.cores), given.write)


if __name__ == "__main__":
    main()
