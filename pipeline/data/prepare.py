"""From pictures to a data store: each picture is read once, checked, put into a split and decoded."""

import csv
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import decode, sources, splits
from pipeline.data.noise import noisy
from pipeline.data.sheet import sheet
from pipeline.data.sources import DataConfig, Item, Source
from pipeline.data.splits import Entry
from pipeline.data.store import SCHEMA, SPLITS, Manifest
from pipeline.settings import InputError

CHUNK_BYTES = 1 << 23
MAX_THREADS = 8  # more threads only wait for the interpreter when pictures are small
OnDecoded = Callable[[int, int], None]  # gets how many of how many pictures are decoded
MIN_STD = 1 / 255  # for a channel that never changes; dividing by 0 would fail


@dataclass(frozen=True)
class _Row:
    """One row of the store."""

    position: int  # of its picture in the source
    split: str
    entry: Entry


def prepare(cfg: DataConfig, out: Path, *, on_decoded: OnDecoded = lambda done, total: None) -> Manifest:
    """Write the pictures that `cfg` names as a data store into the folder `out`, and return its manifest.

    The same pictures and settings give the same bytes. In memory are all hashes, but only a few pictures.
    """
    source = sources.find(cfg)
    _check(source, source.items)
    out.mkdir(parents=True, exist_ok=True)
    staged = out / "staged.bin"  # in the order of the source: the order of rows needs every hash
    entries = _decode_all(source, cfg, staged, on_decoded)
    distinct = splits.distinct(entries)
    rows = _rows(cfg, source, entries, distinct.remaining)
    labels = np.array([row.entry.label for row in rows], dtype=np.int64)

    shape = (len(entries), cfg.size, cfg.size, cfg.channels)
    images = np.memmap(staged, dtype=np.uint8, mode="r", shape=shape)
    pixels, mean, std = _write_images(out / "images.npy", images, rows)
    del images
    staged.unlink()
    np.save(out / "labels.npy", labels)
    _write_table(out / "files.csv", source, rows)

    facts = json.dumps([source.classes, [row.split for row in rows], labels.tolist(), pixels])
    manifest: Manifest = {
        "schema": SCHEMA,
        "source": cfg.source,
        "size": cfg.size,
        "channels": cfg.channels,
        "classes": source.classes,
        "mean": mean,
        "std": std,
        "splits": {split: sum(row.split == split for row in rows) for split in SPLITS},
        "per_class": _count_classes(source, rows),
        "duplicates_removed": distinct.duplicates,
        "conflicts_removed": len(distinct.conflicts),
        "conflicts": [source.items[i].path for i in distinct.conflicts[:20]],
        "ignored_files": source.ignored,
        "settings": cfg.model_dump(exclude={"root"}),
        "content": hashlib.sha256(facts.encode()).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    page = sheet(np.load(out / "images.npy", mmap_mode="r"), labels, source.classes, manifest["per_class"])
    page.save(out / "sheet.png")
    return manifest


def _check(source: Source, pictures: Sequence[Item] | Sequence[Entry]) -> None:
    labels, given = [each.label for each in pictures], [each.split for each in pictures]
    splits.check(labels, given, source.classes, source.where)


def _rows(cfg: DataConfig, source: Source, entries: list[Entry], remaining: list[int]) -> list[_Row]:
    """The rows of the store in their order: by split, then by content."""
    chosen = [entries[i] for i in remaining]
    _check(source, chosen)
    assigned = splits.assign(chosen, val=cfg.val, test=cfg.test, seed=cfg.split_seed)
    rows = [_Row(*each) for each in zip(remaining, assigned, chosen, strict=True)]
    return sorted(rows, key=lambda row: (SPLITS.index(row.split), row.entry.content))


def _write_table(path: Path, source: Source, rows: list[_Row]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "split", "class", "sha256", "path"])
        for n, row in enumerate(rows):
            name, item = source.classes[row.entry.label], source.items[row.position]
            table.writerow([n, row.split, name, row.entry.content, item.path])


def _count_classes(source: Source, rows: list[_Row]) -> dict[str, dict[str, int]]:
    counts = Counter((row.split, row.entry.label) for row in rows)
    return {
        split: {name: counts[split, label] for label, name in enumerate(source.classes)} for split in SPLITS
    }


def _decode_all(source: Source, cfg: DataConfig, staged: Path, on_decoded: OnDecoded) -> list[Entry]:
    """Write every picture to its place in the file `staged`, and return an entry for each."""
    stride = cfg.size * cfg.size * cfg.channels
    count = len(source.items)
    chunk = max(1, min(64, CHUNK_BYTES // stride))

    def decode_chunk(start: int) -> list[Entry | str]:
        """An entry for each picture of the chunk, or a message if it cannot be decoded."""
        pixels = np.zeros((min(chunk, count - start), cfg.size, cfg.size, cfg.channels), dtype=np.uint8)
        results = [_decode_one(source, cfg, i, place) for i, place in enumerate(pixels, start)]
        os.pwrite(handle, pixels.tobytes(), start * stride)
        return results

    entries: list[Entry] = []
    broken: list[str] = []
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool,
        ):
            # Pillow's warnings do not name the file; what matters raises an error
            warnings.filterwarnings("ignore", module="PIL")
            for results in pool.map(decode_chunk, range(0, count, chunk)):
                entries += [each for each in results if isinstance(each, Entry)]
                broken += [each for each in results if isinstance(each, str)]
                on_decoded(len(entries) + len(broken), count)
    finally:
        os.close(handle)
    if broken:
        named = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise InputError(
            f"{source.where}: {len(broken)} of {count} images cannot be decoded: {named}. "
            "Delete or repair them."
        )
    return entries


def _decode_one(source: Source, cfg: DataConfig, i: int, place: np.ndarray) -> Entry | str:
    """Write picture i to `place`, and return its entry, or a message if it cannot be decoded."""
    item = source.items[i]
    try:
        raw = source.read(i)
        image = decode.load(raw)
    except decode.Undecodable as error:
        return f"{item.path} ({error})"
    own = b"%d x %d:" % image.size + image.tobytes()
    content = hashlib.sha256(raw if isinstance(raw, bytes) else own).hexdigest()
    fitted = decode.fit(image, cfg.size, cfg.channels, cfg.square)
    place[:] = noisy(fitted, cfg.noise, cfg.split_seed, content) if cfg.noise else fitted
    return Entry(item.label, item.split, content, hashlib.blake2b(own, digest_size=16).hexdigest())


def _write_images(path: Path, images: np.ndarray, rows: list[_Row]) -> tuple[str, list[float], list[float]]:
    """Write the pictures of the rows as images.npy.

    Returns the hash of their pixels, and the mean and deviation of each channel of the training images, with
    pixels from 0 to 1.
    """
    positions, train = [row.position for row in rows], sum(row.split == "train" for row in rows)
    digest = hashlib.sha256()
    total = np.zeros(images.shape[3], dtype=np.int64)  # integers are exact, whatever the chunks
    squares = np.zeros_like(total)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(positions), *images.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for start, chunk in _chunks(images, positions):
            data = chunk.tobytes()
            digest.update(data)
            file.write(data)
            trained = chunk[: max(0, train - start)].astype(np.uint16)
            total += trained.sum(axis=(0, 1, 2), dtype=np.int64)
            squares += (trained * trained).sum(axis=(0, 1, 2), dtype=np.int64)
    count = train * images.shape[1] * images.shape[2]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return digest.hexdigest(), (mean / 255).tolist(), np.maximum(std / 255, MIN_STD).tolist()


def _chunks(images: np.ndarray, positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, CHUNK_BYTES // images[0].size)
    for start in range(0, len(positions), step):
        yield start, images[positions[start : start + step]]
