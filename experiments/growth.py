"""How a training grows with images, classes, pixels and processes: time of a step, of an epoch, and memory.

    python -m experiments.growth [--rounds 3] [--write FILE]

A student learns from a teacher's answers (method kd). One size grows at a time. The sizes take turns, each in
processes of its own with one thread, and real steps are measured, in CPU time, so that the machine may be
busy. A few pictures of noise stand for all, as time does not depend on them, so the store of real images is
not in the memory.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

from experiments._script import parser_of, print_table, with_range
from pipeline.data.stand_in import Repeated
from pipeline.data.store import Manifest, Store
from pipeline.export import machine
from pipeline.params import Params
from pipeline.runs.measure import measure_run

FEW = 32  # pictures that stand for all
STEPS = 16  # to measure at 32 pixels; fewer of larger pictures
FEWEST = 3
NET = {"net": "resnet8"}
TRAIN = {"epochs": 1, "batch_size": 16, "optimizer": "sgd", "lr": 0.01}
COMPUTED = {"pixels": 512, "processes": 4}  # from the two measured sizes before


@dataclass(frozen=True)
class Size:
    images: int = 10_000
    classes: int = 10
    pixels: int = 32
    processes: int = 1


START = Size()
GROWTH: dict[str, list[Size]] = {
    "images": [replace(START, images=n) for n in (10_000, 100_000, 1_000_000)],
    "classes": [replace(START, classes=n) for n in (10, 100, 1000, 10_000)],
    "pixels": [replace(START, pixels=n) for n in (32, 64, 128, 256)],
    "processes": [replace(START, processes=n) for n in (1, 2)],
}


def params(size: Size) -> Params:
    others: dict[str, dict[str, Any]] = {
        name: {} for name in ("augment", "protocol", "knowledge", "export", "benchmark")
    }
    return Params.model_validate(
        others
        | {
            "launcher": "python",
            "data": {"source": "folder", "root": "images", "size": size.pixels, "channels": 3},
            "train": TRAIN,
            "teachers": {"big": {"net": "resnet20", "train": TRAIN}},
            "students": {"small": NET},
            "runs": {"kd": {"teacher": "big", "student": "small", "method": {"name": "kd"}, "seeds": [0]}},
        }
    )


def store(size: Size) -> Store:
    """So many training images, and some in the other splits."""
    others = np.arange(FEW) % size.classes
    labels = np.concatenate([np.arange(size.images) % size.classes, others, others])
    shape = (FEW, size.pixels, size.pixels, 3)
    few = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    manifest = {
        "size": size.pixels,
        "channels": 3,
        "classes": [f"{n:05}" for n in range(size.classes)],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "splits": {"train": size.images, "val": FEW, "test": FEW},
        "unlabelled": 0,
        "content": "",
    }
    return Store(Path(), Repeated(few, len(labels)), labels, cast(Manifest, manifest))


def measure(size: Size) -> dict[str, float]:
    """Measure in this process, its CPU time in place of the time that passes."""
    torch.set_num_threads(1)
    chosen = params(size)
    run, teacher = chosen.run("kd"), chosen.teacher_run("big")
    steps = max(FEWEST, STEPS // max(1, size.pixels // START.pixels) ** 2)  # as many in each process
    counted = patch.multiple("pipeline.runs.measure", WARM_UP=1, FEWEST=steps, SECONDS=0.0)
    with counted, patch("time.perf_counter", time.process_time):
        cost = measure_run(run, "distill", teacher, store(size), is_known=True)
    (phase,) = cost.phases
    return {
        "step": 1000 * phase.step,
        "epoch": phase.steps * phase.step,
        "start": cost.set_up,
        "memory": cost.memory_mb,
    }


def in_a_process(size: Size) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size.processes}"]
    command = [sys.executable, *(launcher if size.processes > 1 else [])]
    command += ["-m", "experiments.growth", "--of", json.dumps(asdict(size))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(growth: dict[str, list[Size]], rounds: int) -> str:
    sizes = list(dict.fromkeys(size for sizes in growth.values() for size in sizes))
    with tqdm(total=rounds * len(sizes), disable=None) as bar:
        found: dict[Size, list[dict[str, float]]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size in sizes:
                found[size].append(in_a_process(size))
                bar.update()
    measured = f"medians of {rounds}, with the smallest and the largest value"
    if rounds == 1:
        measured = "measured once"
    lines = [
        f"{machine.cpu()['model']}; resnet20 teaches resnet8 with kd, batch {TRAIN['batch_size']}. CPU time "
        f"of a process with one thread, {measured}. An epoch is its number of steps times the time of one.",
        "",
        "| grows | to | step, ms | epoch, s | start, s | memory, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, sizes in growth.items():
        lines += [_row(name, f"{getattr(size, name):,}", found[size]) for size in sizes]
        if name in COMPUTED and len(sizes) > 1:
            pairs = zip(found[sizes[-2]], found[sizes[-1]], strict=True)
            rows = [COMPUTE[name](*pair) for pair in pairs]
            lines.append(_row(name, f"{COMPUTED[name]}, computed", rows))
    return "\n".join(lines) + "\n"


def of_twice_the_side(half: dict[str, float], whole: dict[str, float]) -> dict[str, float]:
    """Time and memory are a fixed part and one that grows with the area."""
    return {key: value + 4 * (value - half[key]) for key, value in whole.items()} | {"start": whole["start"]}


def of_more_processes(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    """A share of the work of one, and beside it as much as with two."""
    found = {
        key: one[key] / COMPUTED["processes"] + max(0.0, two[key] - one[key] / 2) for key in ("step", "epoch")
    }
    return two | found


COMPUTE = {"pixels": of_twice_the_side, "processes": of_more_processes}


def _row(name: str, value: str, found: Sequence[dict[str, float]]) -> str:
    digits: dict[str, int] = {"step": 0, "epoch": 0, "start": 1, "memory": 0}
    cells = [with_range([each[key] for each in found], places) for key, places in digits.items()]
    return f"| {name} | {value} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("growth", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.of:
        size: dict[str, Any] = json.loads(given.of)
        found = measure(Size(**size))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    print_table(table(GROWTH, given.rounds), given.write)


if __name__ == "__main__":
    main()
