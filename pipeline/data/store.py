"""The prepared data set on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from pipeline.data.decode import Square
from pipeline.data.images import ImageFile, Images
from pipeline.data.packed import FILE as PACK
from pipeline.data.packed import PackedImages
from pipeline.settings import InputError

SCHEMA = 3
SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the name of a fourth part of the rows, which have no label
NO_LABEL = -1


class Manifest(TypedDict):
    """What manifest.json of a store says."""

    schema: int
    source: str
    size: int
    channels: int
    classes: list[str]
    mean: list[float]  # of each channel of the training images, pixels from 0 to 1
    std: list[float]
    splits: dict[str, int]  # labelled images in each split
    unlabelled: int  # other images
    per_class: dict[str, dict[str, int]]  # images in each split by name of the class
    left_out: dict[str, int]  # files that did not become images, by kind; left_out.csv lists them
    settings: dict[str, Any]
    content: str


@dataclass(frozen=True)
class Store:
    """One row for each image, in the order train, val, test, unlabelled."""

    path: Path
    images: Images  # N x H x W x C, uint8; on disk until they are read
    labels: np.ndarray  # N, int64; NO_LABEL for unlabelled images
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """The store in the folder `path`."""
        path = Path(path)
        where, remedy = f"data store {str(path)!r}", "Run the prepare stage again (`dvc repro prepare`)."
        try:
            manifest: Manifest = json.loads((path / "manifest.json").read_text("utf-8"))
            images = open_images(path)
            labels = np.load(path / "labels.npy")
            whole = _belong_together(manifest, images, labels)
        except FileNotFoundError as error:
            raise InputError(f"{where}: {Path(error.filename).name} is missing. {remedy}") from error
        # a damaged file may hold anything
        except (OSError, ValueError, EOFError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{where} cannot be read ({type(error).__name__}: {error}). {remedy}") from error
        if not whole:
            raise InputError(
                f"{where}: its images, labels.npy and manifest.json do not belong together. {remedy}"
            )
        return cls(path, images, labels, manifest)

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def size(self) -> int:
        return self.manifest["size"]

    @property
    def channels(self) -> int:
        return self.manifest["channels"]

    @property
    def square(self) -> Square:
        """How pictures became squares. Stores from before there was a choice were cropped."""
        square: Square = self.manifest["settings"].get("square", "crop")
        return square

    @property
    def mean(self) -> list[float]:
        return self.manifest["mean"]

    @property
    def std(self) -> list[float]:
        return self.manifest["std"]

    @property
    def content(self) -> str:
        """Hash of every pixel, label, split and name of a class."""
        return self.manifest["content"]

    def indices(self, split: str) -> np.ndarray:
        """Rows of a split, or those that are unlabelled."""
        counts = self.manifest["splits"] | {UNLABELLED: self.manifest["unlabelled"]}
        order = (*SPLITS, UNLABELLED)
        start = sum(counts[name] for name in order[: order.index(split)])
        return np.arange(start, start + counts[split])


def open_images(path: Path) -> ImageFile | PackedImages:
    """The pictures of the store in the folder `path`; on disk until they are read."""
    return PackedImages(path) if (path / PACK).exists() else ImageFile(path)


def _belong_together(manifest: Manifest, images: ImageFile | PackedImages, labels: np.ndarray) -> bool:
    if manifest["schema"] != SCHEMA:
        return False
    labelled = sum(manifest["splits"][name] for name in SPLITS)
    rows = labelled + manifest["unlabelled"]
    size, channels = manifest["size"], manifest["channels"]
    return (
        len(manifest["mean"]) == len(manifest["std"]) == channels
        and isinstance(manifest["content"], str)
        and images.dtype == np.uint8
        and images.shape == (rows, size, size, channels)
        and labels.dtype == np.int64
        and labels.shape == (rows,)
        and bool(labelled)
        and 0 <= labels[:labelled].min() <= labels[:labelled].max() < len(manifest["classes"])
        and bool((labels[labelled:] == NO_LABEL).all())
    )
