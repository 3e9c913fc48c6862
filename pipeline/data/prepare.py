"""From pictures to a data store: each picture is read once, checked, put into a split and decoded."""

import csv
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import decode, sources, splits
from pipeline.data.items import Source
from pipeline.data.left_out import LeftOut, count, refuse_bad, write_list
from pipeline.data.noise import noisy
from pipeline.data.sheet import sheet
from pipeline.data.sources import DataConfig
from pipeline.data.splits import Distinct, Entry
from pipeline.data.store import NO_LABEL, SCHEMA, SPLITS, UNLABELLED, Manifest
from pipeline.files import save_array

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


def prepare(
    cfg: DataConfig,
    out: Path,
    *,
    on_decoded: OnDecoded = lambda done, total: None,
    bad_files: Path | None = None,
) -> Manifest:
    """Write the pictures that `cfg` names as a data store into the folder `out`, and return its manifest.

    The same pictures and settings give the same bytes. In memory are all hashes, but only a few pictures. If
    files cannot be read, `bad_files` is where the list of them goes.
    """
    source = sources.find(cfg)
    splits.check(source.items, source.classes, source.where)
    out.mkdir(parents=True, exist_ok=True)
    staged = out / "staged.bin"  # in the order of the source: the order of rows needs every hash
    decoded = _decode_all(source, cfg, staged, on_decoded)
    bad = [*source.bad, *(each for each in decoded if isinstance(each, LeftOut))]
    refuse_bad(
        bad,
        len(decoded) + len(source.bad),
        where=source.where,
        most=cfg.max_bad if cfg.on_bad == "skip" else None,
        listed=bad_files,
    )
    rows, dropped = _choose_rows(cfg, source, decoded)
    left_out = [*bad, *source.left_out, *dropped]
    labels = np.array([row.entry.label for row in rows], dtype=np.int64)

    shape = (len(decoded), cfg.size, cfg.size, cfg.channels)
    images = np.memmap(staged, dtype=np.uint8, mode="r", shape=shape)
    pixels, mean, std = _write_images(out / "images.npy", images, rows)
    del images
    staged.unlink()
    save_array(out / "labels.npy", labels)
    _write_table(out / "files.csv", source, rows)
    write_list(out / "left_out.csv", left_out)

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
        "unlabelled": sum(row.split == UNLABELLED for row in rows),
        "per_class": _count_classes(source, rows),
        "left_out": count(left_out),
        "settings": cfg.model_dump(exclude={"root"}),
        "content": hashlib.sha256(facts.encode()).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    page = sheet(np.load(out / "images.npy", mmap_mode="r"), labels, source.classes, manifest["per_class"])
    page.save(out / "sheet.png")
    return manifest


def _choose_rows(
    cfg: DataConfig, source: Source, decoded: Sequence[Entry | LeftOut]
) -> tuple[list[_Row], list[LeftOut]]:
    """The rows of the store in their order, by split and then by content; and what is left out of them."""
    entries = {i: each for i, each in enumerate(decoded) if isinstance(each, Entry)}
    distinct = splits.distinct(entries)
    chosen = [entries[i] for i in distinct.remaining]
    splits.check(chosen, source.classes, source.where)
    assigned = splits.assign(chosen, val=cfg.val, test=cfg.test, seed=cfg.split_seed)
    splits.check_assigned(chosen, assigned, source.classes, source.where)
    rows = [_Row(*each) for each in zip(distinct.remaining, assigned, chosen, strict=True)]
    held_out = splits.held_out(chosen, assigned)
    order = (*SPLITS, UNLABELLED)
    return (
        sorted(
            (row for n, row in enumerate(rows) if n not in held_out),
            key=lambda row: (order.index(row.split), row.entry.content),
        ),
        _dropped(source, entries, distinct, [rows[n].position for n in held_out]),
    )


def _dropped(
    source: Source, entries: Mapping[int, Entry], distinct: Distinct, held_out: Sequence[int]
) -> list[LeftOut]:
    """The pictures that are left out because of other ones."""
    found = []
    for i, other in distinct.conflicts.items():
        reason = f"the same pixels as {source.items[other].path}, which has another label"
        found.append(LeftOut(source.items[i].path, "contradictory label", reason))
    for i, kept in distinct.copies.items():
        is_labelled_too = entries[i].label == NO_LABEL != entries[kept].label
        kind = "unlabelled copy" if is_labelled_too else "duplicate"
        found.append(LeftOut(source.items[i].path, kind, f"the same pixels as {source.items[kept].path}"))
    for i in held_out:
        reason = "labelled pictures of its group are in val or test"
        found.append(LeftOut(source.items[i].path, "group held out", reason))
    return found


def _write_table(path: Path, source: Source, rows: list[_Row]) -> None:
    names = {NO_LABEL: "", **dict(enumerate(source.classes))}
    last = 6 if any(item.group for item in source.items) else 5
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "split", "class", "sha256", "path", "group"][:last])
        for n, row in enumerate(rows):
            item, entry = source.items[row.position], row.entry
            cells = [n, row.split, names[entry.label], entry.content, item.path, item.group]
            table.writerow(cells[:last])


def _count_classes(source: Source, rows: list[_Row]) -> dict[str, dict[str, int]]:
    counts = Counter((row.split, row.entry.label) for row in rows)
    return {
        split: {name: counts[split, label] for label, name in enumerate(source.classes)} for split in SPLITS
    }


def _decode_all(
    source: Source, cfg: DataConfig, staged: Path, on_decoded: OnDecoded
) -> list[Entry | LeftOut]:
    """Write every picture to its place in the file `staged`. Returns its entry, or why there is none."""
    stride = cfg.size * cfg.size * cfg.channels
    count = len(source.items)
    chunk = max(1, min(64, CHUNK_BYTES // stride))

    def decode_chunk(start: int) -> list[Entry | LeftOut]:
        pixels = np.zeros((min(chunk, count - start), cfg.size, cfg.size, cfg.channels), dtype=np.uint8)
        results = [_decode_one(source, cfg, i, place) for i, place in enumerate(pixels, start)]
        _write_at(handle, pixels.tobytes(), start * stride)
        return results

    decoded: list[Entry | LeftOut] = []
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool,
        ):
            # Pillow's warnings do not name the file; what matters raises an error
            warnings.filterwarnings("ignore", module="PIL")
            for results in pool.map(decode_chunk, range(0, count, chunk)):
                decoded += results
                on_decoded(len(decoded), count)
    finally:
        os.close(handle)
    return decoded


def _write_at(handle: int, content: bytes, place: int) -> None:
    """Write all of it: one call may write a part, as when the disk is nearly full."""
    while content:
        written = os.pwrite(handle, content, place)
        content, place = content[written:], place + written


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
    place[:] = noisy(fitted, cfg.noise, cfg.split_seed, content) if cfg.noise else fitted
    pixels = hashlib.blake2b(own, digest_size=16).hexdigest()
    return Entry(item.label, item.split, content, pixels, item.group)


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
