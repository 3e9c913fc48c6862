"""The decoded data set on disk: mapped into memory, read-only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inputs import InputError

SCHEMA = 1
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Store:
    """Rows are ordered train, val, test; images are uint8 NHWC, read-only, and stay on disk until touched."""

    path: Path
    images: np.ndarray
    labels: np.ndarray
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        path = Path(path)
        remedy = "Run the prepare stage again (`dvc repro prepare`)."
        try:
            manifest = json.loads((path / "manifest.json").read_text("utf-8"))
            images = np.load(path / "images.npy", mmap_mode="r")
            labels = np.load(path / "labels.npy")
            whole = _belong_together(manifest, images, labels)
        except FileNotFoundError as error:
            raise InputError(f"data store {str(path)!r}: {Path(error.filename).name} is missing. {remedy}") from error
        except (OSError, ValueError, EOFError, AttributeError, KeyError, TypeError) as error:  # anything may stand in a broken file
            raise InputError(f"data store {str(path)!r} can't be read ({type(error).__name__}: {error}). {remedy}") from error
        if not whole:
            raise InputError(f"data store {str(path)!r}: images.npy, labels.npy and manifest.json don't belong together. {remedy}")
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
    def mean(self) -> list[float]:
        return self.manifest["mean"]

    @property
    def std(self) -> list[float]:
        return self.manifest["std"]

    @property
    def content(self) -> str:
        """Hash of every pixel, label, split and class name."""
        return self.manifest["content"]

    def indices(self, split: str) -> np.ndarray:
        """Rows of a split."""
        counts = [self.manifest["splits"][name] for name in SPLITS]
        start = sum(counts[: SPLITS.index(split)])
        return np.arange(start, start + self.manifest["splits"][split])


def _belong_together(manifest: dict[str, Any], images: np.ndarray, labels: np.ndarray) -> bool:
    rows = sum(manifest["splits"][name] for name in SPLITS)
    channels = manifest["channels"]
    return (
        manifest["schema"] == SCHEMA
        and len(manifest["mean"]) == len(manifest["std"]) == channels
        and isinstance(manifest["content"], str)
        and (images.dtype, images.shape) == (np.uint8, (rows, manifest["size"], manifest["size"], channels))
        and (labels.dtype, labels.shape) == (np.int64, (rows,))
        and bool(rows)
        and 0 <= labels.min() <= labels.max() < len(manifest["classes"])
    )
