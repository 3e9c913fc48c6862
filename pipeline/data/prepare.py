"""From pictures to a data store: each picture is read once, checked, decoded and put into a split."""

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import sources, splits
from pipeline.data.decoding import OnDecoded, decode_all, key_of
from pipeline.data.image_writer import ImageWriter
from pipeline.data.items import Source
from pipeline.data.left_out import LeftOut, count, refuse_bad, write_list
from pipeline.data.packed import PackWriter
from pipeline.data.sheet import sheet
from pipeline.data.sources import DataConfig
from pipeline.data.splits import Distinct, Entry
from pipeline.data.store import NO_LABEL, SCHEMA, SPLITS, UNLABELLED, Manifest, open_images
from pipeline.data.unfinished import Unfinished
from pipeline.files import save_array

MIN_STD = 1 / 255  # for a channel that never changes; dividing by 0 would fail


@dataclass(frozen=True, slots=True)
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
    work: Path | None = None,
) -> Manifest:
    """Write the pictures that `cfg` names as a data store into the folder `out`, and return its manifest.

    The same pictures and settings give the same bytes. Each file is read once, and each picture written once.
    In memory are all hashes, but only a few pictures. If files cannot be read, `bad_files` is where the list
    of them goes. If this stops, the next call with the same folder `work` goes on there.
    """
    source = sources.find(cfg)
    splits.check(source.items, source.classes, source.where)
    out.mkdir(parents=True, exist_ok=True)
    work = work or out / "unfinished"
    unfinished = Unfinished(work, key_of(cfg))
    writer = ImageWriter if cfg.kept_as == "pixels" else PackWriter
    with writer(work, cfg.size, cfg.channels) as images:
        decoded = decode_all(source, cfg, images, unfinished, on_decoded)
        bad = [*source.bad, *(each for each in decoded.results if isinstance(each, LeftOut))]
        refuse_bad(
            bad,
            len(decoded.results) + len(source.bad),
            where=source.where,
            most=cfg.max_bad if cfg.on_bad == "skip" else None,
            listed=bad_files,
        )
        rows, dropped = _choose_rows(cfg, source, decoded.results)
        positions = np.array([row.position for row in rows])
        images.finish(positions, out)
    left_out = [*bad, *source.left_out, *dropped]
    labels = np.array([row.entry.label for row in rows], dtype=np.int64)
    save_array(out / "labels.npy", labels)
    _write_table(out / "files.csv", source, rows)
    write_list(out / "left_out.csv", left_out)

    mean, std = _statistics(decoded.sums[positions[[row.split == "train" for row in rows]]], cfg.size)
    facts = json.dumps([source.classes, [row.split for row in rows], labels.tolist()]).encode()
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
        "content": hashlib.sha256(facts + decoded.hashes[positions].tobytes()).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    page = sheet(open_images(out), labels, source.classes, manifest["per_class"])
    page.save(out / "sheet.png")
    shutil.rmtree(work)
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


def _statistics(sums: np.ndarray, size: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over all these images, with pixels from 0 to 1."""
    total, squares = sums.sum(0)
    count = len(sums) * size * size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return (mean / 255).tolist(), np.maximum(std / 255, MIN_STD).tolist()
