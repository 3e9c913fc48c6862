"""Whether memory stays flat: over epochs, over photographs to decode, over requests to `serve`.

    python -m experiments.memory [--bundle models/export/RUN] [--write FILE]

Each case runs in a process of its own, and the table has the memory of that process after each fifth of the
work: its own, and the pages of files that it maps. The system takes such pages back when it needs memory. A
student learns from a teacher's answers to pictures of noise; both are tiny, so that time goes into pictures.
Photographs of noise are decoded as by stage `prepare`. With `--bundle`, a server answers photographs, as of a
phone.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from experiments._script import parser_of, print_table
from pipeline import methods
from pipeline.data.augment import AugmentConfig
from pipeline.data.images import ImageFile
from pipeline.data.prepare import prepare
from pipeline.data.protocol import ProtocolConfig
from pipeline.data.sources import DataConfig
from pipeline.data.store import Manifest, Store
from pipeline.nets import NetConfig
from pipeline.runs.context import Context
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import fit
from pipeline.training.recipe import TrainConfig

PARTS = 5
CLASSES = 10
PHOTOGRAPH = (1600, 1200)


@dataclass(frozen=True)
class Work:
    """How much of each. One epoch or more is one part."""

    epochs: int = 5
    images: int = 60_000
    pixels: int = 32
    photographs: int = 300
    requests: int = 1000


class Memory(NamedTuple):
    """MB of a process."""

    own: float
    files: float

    def __str__(self) -> str:
        return f"{self.own:.0f} + {self.files:.0f}"


def tiny(num_classes: int) -> nn.Module:
    """A network that costs next to nothing."""
    layers = [nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, num_classes))


def memory_mb(process: int | str = "self") -> Memory:
    status = Path(f"/proc/{process}/status").read_text()
    kb = {name: int(number) for name, number in re.findall(r"^Rss(\w+):\s+(\d+) kB", status, re.MULTILINE)}
    return Memory((kb["Anon"] + kb["Shmem"]) * 1024 / 1e6, kb["File"] * 1024 / 1e6)


def training(work: Work, folder: Path) -> list[Memory]:
    """Memory after each fifth of the epochs: kd, with crops and colours, from pictures on the disk."""
    context = Context.of_students(_store(work, folder), ProtocolConfig(), AugmentConfig(preset="standard"))
    found: list[Memory] = []
    train(context, work.epochs, on_point=lambda: found.append(memory_mb()))
    return found[work.epochs // PARTS - 1 :: work.epochs // PARTS]


def train(context: Context, epochs: int, on_point: Callable[[], None] = lambda: None) -> None:
    """A student learns from a teacher's answers; `on_point` is called after each epoch."""
    student, teacher = (_network(context) for _ in range(2))
    teacher.net.eval().requires_grad_(False)
    method = context.build_method(methods.load("kd").Config(name="kd", kd_weight=0.9), student, teacher)
    cfg = TrainConfig(epochs=epochs, points=epochs, batch_size=128)
    (phase,) = method.phases(student)
    fit(
        phase,
        context.batches(cfg, 0, student, teacher),
        cfg,
        student=student,
        teacher=teacher,
        method=method,
        accelerator=context.accelerator,
        seed=0,
        validate=partial(context.validate, input=student.input),
        on_point=lambda so_far: on_point(),
    )


def _network(context: Context) -> Tapped:
    cfg = NetConfig(net="experiments.memory:tiny")
    return context.tap(context.build_network(cfg), {"map": "2"}, context.input_of(cfg, "random", "net"))


def _store(work: Work, folder: Path) -> Store:
    """On the disk, as that of `prepare`."""
    others, shape = 1000, (work.pixels, work.pixels, 3)
    count = work.images + 2 * others
    file = folder / "images.npy"
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, *shape))
    random = np.random.default_rng(0)
    for start in range(0, count, 1000):
        part = images[start : start + 1000]
        part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
    del images, part
    manifest = {
        "size": work.pixels,
        "channels": 3,
        "classes": [str(n) for n in range(CLASSES)],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "splits": {"train": work.images, "val": others, "test": others},
        "unlabelled": 0,
        "content": "",
    }
    labels = np.arange(count) % CLASSES
    np.save(folder / "order.npy", random.permutation(count))
    return Store(folder, ImageFile(folder), labels, cast(Manifest, manifest))


def decoding(work: Work, folder: Path) -> list[Memory]:
    """Memory after each fifth of the photographs."""
    for n in range(work.photographs):
        place = folder / "raw" / str(n % 2)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{n}.jpg").write_bytes(photograph(n))
    found: list[Memory] = []

    def look(done: int, total: int) -> None:
        while len(found) < PARTS * done // total:
            found.append(memory_mb())

    cfg = DataConfig(source="folder", root=str(folder / "raw"), size=64)
    prepare(cfg, folder / "prepared", on_decoded=look)
    return found


def photograph(seed: int) -> bytes:
    few = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(few).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def serving(work: Work, bundle: Path) -> list[Memory]:
    """Memory of the server after each fifth of the requests; every tenth is no picture."""
    command = [sys.executable, "-m", "pipeline.deploy", "serve", str(bundle), "--port", "0"]
    server = subprocess.Popen(  # noqa: S603
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = next(found[1] for line in server.stdout if (found := re.search(r"http://([\d.:]+)", line)))
        return list(_asked(address, work.requests, server.pid))
    finally:
        server.terminate()
        server.communicate()


def _asked(address: str, requests: int, server: int) -> Iterator[Memory]:
    photographs = [photograph(seed) for seed in range(10)]
    connection = HTTPConnection(address, timeout=60)
    for n in range(requests):
        connection.request("POST", "/predict", b"no picture" if n % 10 == 9 else photographs[n % 10])
        reply = connection.getresponse()
        reply.read()
        assert reply.status == (200 if n % 10 != 9 else 422), reply.status
        if (n + 1) % (requests // PARTS) == 0:
            yield memory_mb(server)
    connection.close()


def in_a_process(case: str, work: Work) -> list[Memory]:
    command = [sys.executable, "-m", "experiments.memory", "--of", case, "--work", json.dumps(asdict(work))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return [Memory(*each) for each in json.loads(done.stdout.splitlines()[-1])]


def table(work: Work, bundle: Path | None) -> str:
    cases = {
        f"{work.images:,} images of {work.pixels} pixels, {work.epochs} epochs of kd": "training",
        f"{work.photographs:,} photographs of {' x '.join(map(str, PHOTOGRAPH))} decoded": "decoding",
    }
    found = {what: in_a_process(case, work) for what, case in cases.items()}
    if bundle is not None:
        found[f"{work.requests:,} requests to `serve`, with such photographs"] = serving(work, bundle)
    parts = " | ".join(f"{100 * (n + 1) // PARTS} %" for n in range(PARTS))
    rows = [f"| {what} | {' | '.join(map(str, each))} |" for what, each in found.items()]
    return "\n".join([f"| MB, own + files, after | {parts} |", f"|---|{'--:|' * PARTS}", *rows]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("memory", __doc__)
    parser.add_argument("--bundle", type=Path, help="a bundle to serve")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--of", choices=("training", "decoding"), help=argparse.SUPPRESS)
    parser.add_argument("--work", default="{}", help='other amounts of work, such as {"epochs": 20}')
    given = parser.parse_args(arguments)
    work = Work(**json.loads(given.work))
    if given.of:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            case = training if given.of == "training" else decoding
            print(json.dumps(case(work, Path(folder))))
        return
    print_table(table(work, given.bundle), given.write)


if __name__ == "__main__":
    main()
