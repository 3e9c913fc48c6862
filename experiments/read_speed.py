"""How fast random rows of a large store are read: through a map of the file, as before, and by place.

    python -m experiments.read_speed [--images 20000] [--size 224] [--rounds 5] [--write FILE]

The file holds noise. Each round reads random batches, by both ways in turn: cold, when the system has
dropped the file from memory, and warm. The batches of training are those of the light views, without a
network.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from experiments._script import parser_of, print_table, with_quartiles
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batches
from pipeline.data.image_writer import ImageWriter
from pipeline.data.images import FILE, ImageFile, Images
from pipeline.data.protocol import Subset
from pipeline.device import keep_memory
from pipeline.export import machine
from pipeline.functional import Input

BATCH = 64
BATCHES = 8  # of a round
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
Figures = dict[str, float]
Opened = Callable[[Path], Images]
Work = Callable[[Images, int], Iterator[object]]


def write_noise(folder: Path, count: int, size: int) -> None:
    few = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    with ImageWriter(folder, size, 3) as writer:
        for start in range(0, count, len(few)):
            writer.write(start, few[: count - start])
        writer.finish(np.arange(count), folder)


class Mapped:
    """Rows through a map of the file, in the order of the store: as before."""

    def __init__(self, folder: Path) -> None:
        self.pixels = np.load(folder / FILE, mmap_mode="r")
        self.shape = self.pixels.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        found: np.ndarray = self.pixels[rows]
        return found


WAYS: tuple[Opened, Opened] = (Mapped, ImageFile)


def drop(file: Path) -> None:
    """Let the system forget what it has read of the file."""
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def plain(images: Images, seed: int) -> Iterator[object]:
    random = np.random.default_rng(seed)
    while True:
        yield images[random.integers(0, len(images), BATCH)]


def training(images: Images, seed: int) -> Iterator[object]:
    """Batches of images that are not kept in memory."""
    rows, size = np.arange(len(images)), images.shape[1]
    options: dict[str, Any] = {"batch_size": BATCH, "seed": seed, "mean": MEAN, "device": "cpu"}
    with patch("pipeline.data.views.resident_bytes", lambda device: 0):
        batches = Batches(
            images,
            Subset(rows, rows * 0, (0,)),
            augment=AugmentConfig(),
            input=Input(size, MEAN, STD),
            **options,
        )
    if isinstance(images, Mapped):  # as before: nothing was read ahead
        batches.views.on_disk.expect = lambda batches: None  # type: ignore[method-assign]
    return iter(batches.epoch(0))


def measure(opened: Opened, work: Work, folder: Path, seed: int, *, cold: bool) -> Figures:
    """Images a second of the clock and of the CPU, and bytes that were read for each byte of the images."""
    images = opened(folder)
    size = int(np.prod(images.shape[1:]))
    if cold:
        drop(folder / FILE)
    before, wall, used = bytes_read(), time.perf_counter(), time.process_time()
    for _, _ in zip(range(BATCHES), work(images, seed), strict=False):
        pass
    wall, used = time.perf_counter() - wall, time.process_time() - used
    count = BATCHES * BATCH
    return {"wall": count / wall, "cpu": count / used, "bytes": (bytes_read() - before) / (count * size)}


def bytes_read() -> int:
    """From the disk, by this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def table(folder: Path, count: int, size: int, rounds: int) -> str:
    write_noise(folder, count, size)
    lines = [
        f"{machine.cpu()['model']}, one thread; {count:,} images of {size} x {size} pixels "
        f"({count * size * size * 3 / 1e9:.1f} GB), batches of {BATCH}. Medians of {rounds} rounds of "
        f"{BATCHES} batches, and quartiles of the rounds' ratios of images a second.",
        "",
        "| what | file | map, images/s | by place, images/s | ratio | by CPU time | bytes, map | by place |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for what, work in {"rows": plain, "batches of training": training}.items():
        for cold in (True, False):
            lines.append(_row(what, work, folder, rounds, cold=cold))
    return "\n".join(lines) + "\n"


def _row(what: str, work: Work, folder: Path, rounds: int, *, cold: bool) -> str:
    found: tuple[list[Figures], list[Figures]] = [], []
    for seed in range(rounds):
        for figures, opened in zip(found, WAYS, strict=True):
            if not cold:
                measure(opened, work, folder, seed, cold=False)
            figures.append(measure(opened, work, folder, seed, cold=cold))
    old, new = found
    rates = [f"{statistics.median(each['wall'] for each in figures):,.0f}" for figures in found]
    read = [f"{statistics.median(each['bytes'] for each in figures):.1f}" for figures in found]
    ratios = [
        with_quartiles([b[key] / a[key] for a, b in zip(old, new, strict=True)]) for key in ("wall", "cpu")
    ]
    return f"| {' | '.join([what, 'cold' if cold else 'warm', *rates, *ratios, *read])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("read_speed", __doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the file is made; it goes when all is measured")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print_table(table(Path(folder), given.images, given.size, given.rounds), given.write)


if __name__ == "__main__":
    main()
