"""Pictures from files and folders to lines of a table, JSON or CSV, however many there are: memory stays that of one batch."""

import csv
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from pipeline.data.decode import SUFFIXES, Undecodable
from pipeline.deploy.bundle import BundleError
from pipeline.deploy.predictor import Answer, Predictor

Form = Literal["table", "json", "csv"]


@dataclass(frozen=True, eq=False)
class Row:
    """One picture's answer, or why there is none."""

    path: str
    answer: Answer | None
    error: str = ""


def find(places: Sequence[Path]) -> Iterator[Path]:
    """The files named, and all pictures in the folders named, at any depth, in the order in which the file system gives them."""
    for place in places:
        if not place.exists():
            raise BundleError(f"{place}: there is no such file or folder.")
    for place in places:
        if place.is_dir():
            yield from _walk(place, set())
        else:
            yield place


def rows(predictor: Predictor, paths: Iterable[Path], *, threads: int = 1) -> Iterator[Row]:
    """One row for each path, in order. `threads` read and decode."""
    waiting = iter(paths)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(waiting, predictor.batch)):
            read = list(pool.map(lambda path: _pixels(predictor, path), chunk))
            pixels = [each for each in read if isinstance(each, np.ndarray)]
            answers = iter(predictor.answers(np.stack(pixels)) if pixels else [])
            for path, each in zip(chunk, read, strict=True):
                yield Row(str(path), None, each) if isinstance(each, str) else Row(str(path), next(answers))


def write(found: Iterable[Row], out: TextIO, *, form: Form, top: int, classes: Sequence[str]) -> tuple[int, int]:
    """Write the rows as they come; returns how many there were and how many had no answer. `top` classes are given for each."""
    count, failed = 0, 0
    table = csv.writer(out, lineterminator="\n")
    width = min(max(len(printable(name)) for name in classes), 40)
    if form == "csv":
        names = [f"{what}_{n}" if n > 1 else what for n in range(1, top + 1) for what in ("class", "probability")]
        table.writerow(["path", *names, "error"])
    for row in found:
        count, failed = count + 1, failed + (row.answer is None)
        best = row.answer.top(top) if row.answer else []
        if form == "csv":
            cells = [cell for name, probability in best for cell in (name, f"{probability:.6f}")]
            table.writerow([row.path, *cells, *[""] * (2 * min(top, len(classes)) - len(cells)), row.error])
        elif form == "json":
            said = [{"class": name, "probability": round(probability, 6)} for name, probability in best]
            out.write(json.dumps({"path": row.path, **(said[0] | {"top": said} if said else {"error": row.error})}) + "\n")
        elif row.answer is None:
            out.write(f"{'-':<{width}}         {printable(row.path)}: {printable(row.error)}\n")
        else:
            words = "  ".join(f"{printable(name):<{width}} {probability:6.1%}" for name, probability in best)
            out.write(f"{words}  {printable(row.path)}\n")
    return count, failed


def counted(found: Iterable[Row], out: TextIO, *, every: float) -> Iterator[Row]:
    """The same rows, with a word on how far they are each `every` seconds."""
    begun = last = time.monotonic()
    for count, row in enumerate(found, 1):
        yield row
        if (now := time.monotonic()) - last >= every:
            last = now
            print(f"{count:,} pictures, {count / (now - begun):.0f}/s", file=out, end="\r" if out.isatty() else "\n", flush=True)


def command(predictor: Predictor, places: Sequence[Path], *, form: Form, top: int, threads: int) -> int:
    """What `predict` does; 0, or 1 where a picture couldn't be read."""
    begun = time.monotonic()
    found = rows(predictor, find(places), threads=threads)
    if not sys.stdout.isatty():  # else the rows themselves show it
        found = counted(found, sys.stderr, every=0.5 if sys.stderr.isatty() else 30)
    top = min(top, len(predictor.bundle.classes))
    count, failed = write(found, sys.stdout, form=form, top=top, classes=predictor.bundle.classes)
    sys.stdout.flush()
    seconds = time.monotonic() - begun
    rest = f"; {failed:,} couldn't be read" if failed else ""
    print(f"{count:,} pictures in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f}/s){rest}.", file=sys.stderr)
    if not count:
        print(f"There is no picture there ({', '.join(sorted(SUFFIXES))}).", file=sys.stderr)
    return 1 if failed or not count else 0


def printable(text: str) -> str:
    """Text that can't steer a terminal: names of files and classes are anybody's."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _walk(folder: Path, above: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link back up
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), above | {real})
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield Path(entry.path)


def _pixels(predictor: Predictor, path: Path) -> np.ndarray | str:
    if not path.is_file():
        return "not a regular file"
    try:
        return predictor.decode(path)
    except Undecodable as error:
        return str(error)
