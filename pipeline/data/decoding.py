"""All pictures of a source to squares in a file: once through them, in the order in which they were found."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import PIL

from pipeline.data import decode, noise
from pipeline.data.image_writer import ImageWriter
from pipeline.data.items import Source
from pipeline.data.left_out import LeftOut
from pipeline.data.sources import DataConfig
from pipeline.data.splits import Entry
from pipeline.data.unfinished import Chunk, Unfinished

CHUNK_BYTES = 1 << 23
HASH_BYTES = 16
MAX_THREADS = 8  # more threads only wait for the interpreter when pictures are small
OnDecoded = Callable[[int, int], None]  # gets how many of how many pictures are decoded


@dataclass(frozen=True)
class Decoded:
    """What is known of each picture of a source, by its position there."""

    results: list[Entry | LeftOut]  # LeftOut: it cannot be read
    hashes: np.ndarray  # of the squares, N x 16 bytes
    sums: np.ndarray  # over the pixels of a square, and over their squares: N x 2 x channels


def key_of(cfg: DataConfig) -> dict[str, Any]:
    """What squares depend on, besides the pictures."""
    code = hashlib.sha256(b"".join(map(_code, (decode, noise)))).hexdigest()
    settings = cfg.model_dump(
        include={"source", "root", "table", "size", "channels", "square", "noise", "kept_as"}
    )
    return settings | {"seed": cfg.split_seed if cfg.noise else 0, "code": code, "pillow": PIL.__version__}


def _code(module: ModuleType) -> bytes:
    assert module.__file__ is not None
    return Path(module.__file__).read_bytes()


def decode_all(
    source: Source, cfg: DataConfig, images: ImageWriter, unfinished: Unfinished, on_decoded: OnDecoded
) -> Decoded:
    """Write every picture to its place among `images`: its position in the source."""
    count = len(source.items)
    found = Decoded([], np.zeros((count, HASH_BYTES), np.uint8), np.zeros((count, 2, cfg.channels), np.int64))
    for start, chunk in _chunks(source, cfg, images, unfinished):
        part = slice(start, start + len(chunk.results))
        found.hashes[part], found.sums[part] = chunk.hashes, chunk.sums
        found.results.extend(chunk.results)
        on_decoded(len(found.results), count)
    return found


def _chunks(
    source: Source, cfg: DataConfig, images: ImageWriter, unfinished: Unfinished
) -> Iterator[tuple[int, Chunk]]:
    """Pictures on end, by the position of the first one."""
    count, most = len(source.items), max(1, min(64, CHUNK_BYTES // images.stride))

    def chunk_at(start: int) -> tuple[Chunk, bool]:
        positions = range(start, min(start + most, count))
        stamp = _stamp(source, positions)
        known = unfinished.known.get(start)
        if known and known.stamp == stamp and np.array_equal(_hashes(images.read(positions)), known.hashes):
            return known, True
        return _decode_some(source, cfg, images, positions, stamp), False

    threads = min(MAX_THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Pillow's warnings do not name the file; what matters raises an error
        warnings.filterwarnings("ignore", module="PIL")
        starts = range(0, count, most)
        for start, (chunk, is_known) in zip(starts, pool.map(chunk_at, starts), strict=True):
            if not is_known:
                unfinished.add(start, chunk)
            yield start, chunk


def _stamp(source: Source, positions: range) -> str:
    """Changes with the files of these pictures. If that cannot be known, it is never the same."""
    if source.stamp is None:
        return uuid4().hex
    text = "\n".join(f"{source.items[i]} {source.stamp(i)}" for i in positions)
    return hashlib.sha256(text.encode()).hexdigest()


def _decode_some(source: Source, cfg: DataConfig, images: ImageWriter, positions: range, stamp: str) -> Chunk:
    pixels = np.zeros((len(positions), *images.shape), dtype=np.uint8)
    results = [_decode_one(source, cfg, i, place) for i, place in zip(positions, pixels, strict=True)]
    pixels = images.write(positions.start, pixels)
    return Chunk(stamp, results, _hashes(pixels), _sums(pixels))


def _decode_one(source: Source, cfg: DataConfig, i: int, place: np.ndarray) -> Entry | LeftOut:
    """Write picture i to `place`. Returns its entry, or why it cannot be decoded."""
    item = source.items[i]
    try:
        raw = source.read(i)
        image = decode.load(raw)
    except decode.Undecodable as error:
        return LeftOut(item.path, error.kind, str(error))
    own = b"%d x %d:" % image.size + image.tobytes()
    content = hashlib.sha256(raw if isinstance(raw, bytes) else own).hexdigest()
    fitted = decode.fit(image, cfg.size, cfg.channels, cfg.square)
    place[:] = noise.noisy(fitted, cfg.noise, cfg.split_seed, content) if cfg.noise else fitted
    return Entry(item.label, item.split, content, _hash(own).hex(), item.group)


def _hashes(pixels: np.ndarray) -> np.ndarray:
    hashes = b"".join(_hash(place.tobytes()) for place in pixels)
    return np.frombuffer(hashes, np.uint8).reshape(len(pixels), HASH_BYTES)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def _sums(pixels: np.ndarray) -> np.ndarray:
    """Over the pixels of each image and channel, and over their squares: N x 2 x channels.

    Integers are exact, whatever is added up first. Whole columns first is ten times as fast as single pixels.
    """
    count, side, _, channels = pixels.shape
    columns = pixels.reshape(count, side, -1)
    squares = columns.astype(np.uint16)
    squares *= squares
    parts = [each.sum(1, dtype=np.uint32).reshape(count, side, channels) for each in (columns, squares)]
    return np.stack([each.sum(1, dtype=np.int64) for each in parts], 1)
