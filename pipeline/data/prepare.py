"""Pictures into a data store: read, checked, split, decoded once."""

import csv
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.data import decode, sources, splits
from pipeline.data.corrupt import noisy
from pipeline.data.sheet import sheet
from pipeline.data.sources import DataConfig, Source
from pipeline.data.splits import Entry
from pipeline.data.store import SCHEMA, SPLITS
from pipeline.inputs import InputError

CHUNK_BYTES = 1 << 23
MAX_THREADS = 8  # with small pictures more of them only queue for the interpreter
MIN_STD = 1 / 255  # of a channel that never changes, which would otherwise be divided by nothing


def prepare(cfg: DataConfig, out: Path, *, progress: bool = False) -> dict[str, Any]:
    """Read, check, split and store the pictures `cfg` names as files in the folder `out`; gives the manifest.

    The same pictures and settings give the same bytes. Memory holds a few pictures and the hashes, never all pictures.
    """
    source = sources.find(cfg)
    splits.check([item.label for item in source.items], [item.split for item in source.items], source.classes, source.where)
    out.mkdir(parents=True, exist_ok=True)
    staged = out / "staged.bin"  # in the order found; the final order needs every hash
    entries = _decode_all(source, cfg, staged, progress)

    distinct = splits.distinct(entries)
    kept = [entries[i] for i in distinct.kept]
    splits.check([entry.label for entry in kept], [entry.split for entry in kept], source.classes, source.where)
    assigned = splits.assign(kept, val=cfg.val, test=cfg.test, seed=cfg.split_seed)
    order = sorted(range(len(kept)), key=lambda i: (SPLITS.index(assigned[i]), kept[i].content))
    row_splits = [assigned[i] for i in order]
    labels = np.array([kept[i].label for i in order], dtype=np.int64)
    positions = [distinct.kept[i] for i in order]

    shape = (len(entries), cfg.size, cfg.size, cfg.channels)
    images = np.memmap(staged, dtype=np.uint8, mode="r", shape=shape)
    pixels, mean, std = _write_images(out / "images.npy", images, positions, row_splits.count("train"))
    del images
    staged.unlink()
    np.save(out / "labels.npy", labels)
    with (out / "files.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "split", "class", "sha256", "path"])
        for row, position in enumerate(positions):
            label = source.classes[labels[row]]
            table.writerow([row, row_splits[row], label, entries[position].content, source.items[position].path])

    counts = Counter(zip(row_splits, labels.tolist(), strict=True))
    per_class = {split: {name: counts[split, label] for label, name in enumerate(source.classes)} for split in SPLITS}
    facts = json.dumps([source.classes, row_splits, labels.tolist(), pixels])
    manifest = {
        "schema": SCHEMA,
        "source": cfg.source,
        "size": cfg.size,
        "channels": cfg.channels,
        "classes": source.classes,
        "mean": mean,
        "std": std,
        "splits": {split: row_splits.count(split) for split in SPLITS},
        "per_class": per_class,
        "duplicates_removed": distinct.duplicates,
        "conflicts_removed": len(distinct.conflicts),
        "conflicts": [source.items[i].path for i in distinct.conflicts[:20]],
        "ignored_files": source.ignored,
        "settings": cfg.model_dump(exclude={"root"}),
        "content": hashlib.sha256(facts.encode()).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    sheet(np.load(out / "images.npy", mmap_mode="r"), labels, source.classes, per_class).save(out / "sheet.png")
    return manifest


def _decode_all(source: Source, cfg: DataConfig, staged: Path, progress: bool) -> list[Entry]:
    """Every picture at its place in the file `staged`; its hashes come back."""
    stride = cfg.size * cfg.size * cfg.channels
    count = len(source.items)
    chunk = max(1, min(64, CHUNK_BYTES // stride))

    def decode_chunk(start: int) -> list[Entry | str]:
        results: list[Entry | str] = []
        pixels = np.zeros((min(chunk, count - start), cfg.size, cfg.size, cfg.channels), dtype=np.uint8)
        for i, place in enumerate(pixels, start):
            item = source.items[i]
            try:
                raw = source.read(i)
                image = decode.load(raw)
            except decode.Undecodable as error:
                results.append(f"{item.path} ({error})")
                continue
            own = b"%d x %d:" % image.size + image.tobytes()
            content = hashlib.sha256(raw if isinstance(raw, bytes) else own).hexdigest()
            fitted = decode.fit(image, cfg.size, cfg.channels)
            place[:] = noisy(fitted, cfg.noise, cfg.split_seed, content) if cfg.noise else fitted
            results.append(Entry(item.label, item.split, content, hashlib.blake2b(own, digest_size=16).hexdigest()))
        os.pwrite(handle, pixels.tobytes(), start * stride)
        return results

    entries: list[Entry] = []
    broken: list[str] = []
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool,
            tqdm(total=count, desc="decode", unit="img", disable=None if progress else True) as bar,
        ):
            warnings.filterwarnings("ignore", module="PIL")  # it remarks on files without naming them; what matters is an error
            for results in pool.map(decode_chunk, range(0, count, chunk)):
                entries += [each for each in results if isinstance(each, Entry)]
                broken += [each for each in results if isinstance(each, str)]
                bar.update(len(results))
    finally:
        os.close(handle)
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise InputError(
            f"{source.where}: {len(broken)} of {count} images can't be decoded: {', '.join(broken[:5])}{more}. Delete or repair them."
        )
    return entries


def _chunks(images: np.ndarray, positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, CHUNK_BYTES // images[0].size)
    for start in range(0, len(positions), step):
        yield start, images[positions[start : start + step]]


def _write_images(path: Path, images: np.ndarray, positions: list[int], train: int) -> tuple[str, list[float], list[float]]:
    """The pictures at `positions` as images.npy; gives their hash and, of the first `train`, mean and deviation in 0..1."""
    digest = hashlib.sha256()
    total = np.zeros(images.shape[3], dtype=np.int64)  # integers: exact, whatever the chunks
    squares = np.zeros_like(total)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(positions), *images.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for start, chunk in _chunks(images, positions):
            data = chunk.tobytes()
            digest.update(data)
            file.write(data)
            learnt = chunk[: max(0, train - start)].astype(np.uint16)
            total += learnt.sum(axis=(0, 1, 2), dtype=np.int64)
            squares += (learnt * learnt).sum(axis=(0, 1, 2), dtype=np.int64)
    count = train * images.shape[1] * images.shape[2]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return digest.hexdigest(), (mean / 255).tolist(), np.maximum(std / 255, MIN_STD).tolist()
