"""Where pictures come from: bundled digits, a folder of class folders, a table, or a torchvision data set.

A new one is a file like `folder_source.py`, its name in `NAMES` and a call in `find`; see CONTRIBUTING.md.
"""

from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from pipeline.data.decode import Square
from pipeline.data.folder_source import find_folder
from pipeline.data.items import Item, Source
from pipeline.data.table_file import SUFFIXES, Columns
from pipeline.data.table_source import find_in_table
from pipeline.data.torchvision_source import find_torchvision
from pipeline.settings import InputError, Settings, unknown

NAMES = ("digits", "folder", "manifest", "torchvision:NAME")
OWN = ("folder", "manifest")  # these read a person's own images, below `root`


class DataConfig(Settings):
    """Which pictures to learn from, and how they are prepared."""

    source: str = Field(description="digits, folder, manifest or torchvision:NAME")
    root: str = Field("data/raw", description="folder of images, or where torchvision keeps its files")
    size: int = Field(ge=8, le=512, description="images become squares of this side")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey")
    kept_as: Literal["pixels", "jpeg"] = Field(
        "pixels", description="how squares are kept: pixels, or JPEG files, which are smaller but not exact"
    )
    square: Square = Field("crop", description="how a picture becomes a square: crop, squash or pad")
    val: float = Field(0.1, gt=0, lt=1, description="share to cut off if the source has no val split")
    test: float = Field(0.2, gt=0, lt=1, description="share to cut off if the source has no test split")
    split_seed: int = Field(0, description="another seed cuts other splits")
    noise: float = Field(
        0.0, ge=0, le=255, description="sigma of Gaussian noise on every picture, in grey levels; 0: none"
    )
    table: str = Field(
        "", description="the table of source `manifest`: a CSV, JSONL or Parquet file below root"
    )
    columns: Columns = Field(Columns(), description="names of the table's columns")
    on_bad: Literal["fail", "skip"] = Field("fail", description="what to do about files that cannot be read")
    max_bad: float = Field(
        0.01, ge=0, le=1, description="with on_bad skip: a larger share of them still fails"
    )

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        has_name = source.startswith("torchvision:") and source != "torchvision:"
        if source not in NAMES[:-1] and not has_name:
            raise unknown("data.source", source, NAMES)
        return source

    @field_validator("table")
    @classmethod
    def _below_root(cls, table: str) -> str:
        path = PurePosixPath(table)
        if table and (path.is_absolute() or ".." in path.parts or path.suffix.lower() not in SUFFIXES):
            raise InputError(
                f"data.table: {table!r} must be the path of a table below data.root, so that it is watched, "
                f"and must end in one of {', '.join(SUFFIXES)}."
            )
        return table

    @model_validator(mode="after")
    def _table_and_source_agree(self) -> "DataConfig":
        if (self.source == "manifest") != bool(self.table):
            raise InputError(
                "data.table: source `manifest` needs the name of a table, such as table: labels.csv, and the "
                f"other sources have none. The source is {self.source!r}, and the table {self.table!r}."
            )
        if self.source != "manifest" and self.columns.named:
            raise InputError("data.columns: only source `manifest` has a table. Leave it out.")
        return self

    @model_validator(mode="after")
    def _leaves_some_for_training(self) -> "DataConfig":
        if self.val + self.test >= 1:
            raise InputError(
                f"data.val + data.test is {self.val + self.test:g}, which leaves nothing to train on. "
                "Lower one of them."
            )
        return self


def find(cfg: DataConfig) -> Source:
    """The pictures that `data.source` names."""
    if cfg.source == "digits":
        return _digits()
    if cfg.source == "folder":
        return find_folder(cfg.root)
    if cfg.source == "manifest":
        return find_in_table(cfg.root, cfg.table, cfg.columns)
    return find_torchvision(cfg.source.partition(":")[2], cfg.root)


def _digits() -> Source:
    from sklearn.datasets import load_digits  # slow to import; only this source needs it

    bundled = load_digits()
    images = np.rint(bundled.images * (255 / 16)).astype(np.uint8)
    items = [Item(int(label), None, f"digits:{i}") for i, label in enumerate(bundled.target)]
    return Source(
        "data.source 'digits'", [str(n) for n in range(10)], items, lambda i: Image.fromarray(images[i])
    )
