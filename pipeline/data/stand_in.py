"""What the store will be, before there is one: all labels, and a few pictures in place of all."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from pipeline.data import decode, packed, sources, splits
from pipeline.data.decoding import MAX_THREADS
from pipeline.data.items import Source
from pipeline.data.prepare import MIN_STD
from pipeline.data.sources import DataConfig
from pipeline.data.splits import Entry
from pipeline.data.store import SPLITS, UNLABELLED, Manifest, Store

SAMPLE = 128


class Repeated:
    """Like an array of `count` images, but only a few of them are there, again and again."""

    dtype = np.dtype(np.uint8)

    def __init__(self, few: np.ndarray, count: int) -> None:
        self.few, self.shape = few, (count, *few.shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        found: np.ndarray = self.few[np.arange(len(self))[rows] % len(self.few)]
        return found


@dataclass(frozen=True)
class StandIn:
    store: Store
    sampled: int  # pictures that were decoded
    seconds: float  # to decode one picture, with all threads at work
    kept: int  # bytes that all squares will take on the disk


def stand_in(cfg: DataConfig) -> StandIn:
    """Duplicates are not known yet, so the counts of the images are a little too large if there are some."""
    source = sources.find(cfg)
    chosen = np.unique(np.linspace(0, len(source.items) - 1, SAMPLE).astype(int)).tolist()
    start = time.perf_counter()
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(lambda i: _decoded(source, cfg, i), chosen))
    seconds = (time.perf_counter() - start) / len(chosen)
    few = np.stack([each for each in decoded if each is not None] or [_grey(cfg)])
    kept = few.nbytes if cfg.kept_as == "pixels" else sum(len(packed.encode(each)) for each in few)
    return StandIn(_store(cfg, source, few), len(chosen), seconds, len(source.items) * kept // len(few))


def _decoded(source: Source, cfg: DataConfig, i: int) -> np.ndarray | None:
    """The pixels of picture `i`; None if it cannot be decoded, which `prepare` will say."""
    try:
        pixels = decode.fit(decode.load(source.read(i)), cfg.size, cfg.channels, cfg.square)
    except decode.Undecodable:
        return None
    return pixels if cfg.kept_as == "pixels" else packed.decode(packed.encode(pixels))


def _grey(cfg: DataConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (cfg.size, cfg.size, cfg.channels), dtype=np.uint8)


def _store(cfg: DataConfig, source: Source, few: np.ndarray) -> Store:
    entries = [Entry(item.label, item.split, item.path, item.path, item.group) for item in source.items]
    assigned = splits.assign(entries, val=cfg.val, test=cfg.test, seed=cfg.split_seed)
    order = (*SPLITS, UNLABELLED)
    place = np.array([order.index(split) for split in assigned])
    labels = np.array([item.label for item in source.items], dtype=np.int64)[np.argsort(place, kind="stable")]
    pixels = few / 255
    manifest = {  # what a training reads of it
        "size": cfg.size,
        "channels": cfg.channels,
        "classes": source.classes,
        "mean": pixels.mean((0, 1, 2)).tolist(),
        "std": np.maximum(pixels.std((0, 1, 2)), MIN_STD).tolist(),
        "splits": {split: assigned.count(split) for split in SPLITS},
        "unlabelled": assigned.count(UNLABELLED),
        "content": "",
    }
    return Store(Path(), Repeated(few, len(labels)), labels, cast(Manifest, manifest))
