"""Folders of small pictures that all differ."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, *, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )


def fill(folder: Path, count: int, *, start: int = 0, suffix: str = ".png") -> None:
    """Save `count` pictures in `folder`, numbered from `start`. Equal numbers are equal pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(start, start + count):
        picture(n).save(folder / f"{n:04d}{suffix}")


def tree(root: Path, counts: dict[str, int]) -> Path:
    """Save this many pictures in each folder below `root`. No two of them are equal."""
    start = 0
    for name, count in counts.items():
        fill(root / name, count, start=start)
        start += count
    return root
