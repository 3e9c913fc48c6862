"""What lies in a folder of images, as far as the choice of settings depends on it."""

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import decode, sources
from pipeline.data.items import Source
from pipeline.data.sources import DataConfig
from pipeline.data.store import NO_LABEL
from pipeline.data.table_file import SUFFIXES
from pipeline.data.walk import check_watched
from pipeline.settings import InputError

SAMPLE = 64
LARGE = 96  # pixels: pictures whose shorter side is longer are photographs


@dataclass(frozen=True)
class Look:
    data: dict[str, Any]  # source, root and table, as under `data`
    classes: tuple[str, ...]
    counts: tuple[int, ...]  # labelled pictures of each class
    unlabelled: int
    width: int  # of the middle one
    height: int
    is_grey: bool

    @property
    def labelled(self) -> int:
        return sum(self.counts)

    @property
    def side(self) -> int:
        return min(self.width, self.height)

    @property
    def are_photographs(self) -> bool:
        return self.side >= LARGE

    @property
    def are_unbalanced(self) -> bool:
        return max(self.counts) > 5 * min(self.counts)

    def words(self) -> str:
        unlabelled = f" and {self.unlabelled:,} without a label" if self.unlabelled else ""
        grey = ", grey" if self.is_grey else ""
        low, high = min(self.counts), max(self.counts)
        of_each = f"{low:,} of each" if low == high else f"{low:,} to {high:,} of each"
        what = f"{self.labelled:,} images of {len(self.classes)} classes{unlabelled}, {of_each}"
        return f"{what}, about {self.width} x {self.height}{grey}"


def look_at(images: Path) -> Look:
    """Look into a folder of class folders, or of one table and the files that it names."""
    if not images.is_dir():
        raise InputError(f"--images: there is no folder {str(images)!r}. Name the folder that holds them.")
    root = images.resolve()
    check_watched(root, f"--images {str(images)!r}")
    data = {"source": "folder", "root": str(root)} | _table(root)
    source = sources.find(DataConfig(**data, size=8))
    if len(source.classes) < 2:
        raise InputError(
            f"--images: {images} has one class alone, {source.classes[0]!r}. Put the images of at least two "
            "classes there, one folder for each."
        )
    counts = Counter(item.label for item in source.items)
    sizes, is_grey = _sample(source)
    width, height = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    labelled = tuple(counts[label] for label in range(len(source.classes)))
    return Look(data, tuple(source.classes), labelled, counts[NO_LABEL], width, height, is_grey)


def _table(root: Path) -> dict[str, str]:
    """The one table of a folder in which there cannot be two class folders."""
    tables = [path.name for path in root.iterdir() if path.suffix.lower() in SUFFIXES]
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {"source": "manifest", "table": tables[0]} if len(tables) == 1 and len(folders) < 2 else {}


def _sample(source: Source) -> tuple[list[tuple[int, int]], bool]:
    """Width and height of some pictures, and whether all of them are grey."""
    sizes, are_grey = [], []
    for i in np.unique(np.linspace(0, len(source.items) - 1, SAMPLE).astype(int)).tolist():
        try:
            picture = decode.load(source.read(i))
        except decode.Undecodable:
            continue  # `prepare` tells all of them at once
        sizes.append(picture.size)
        few = np.asarray(picture.resize((16, 16)))
        are_grey.append(bool((few == few[..., :1]).all()))
    if not sizes:
        raise InputError(f"{source.where}: none of some {SAMPLE} images can be decoded. Look at them.")
    return sizes, all(are_grey)
