"""Pictures from files and folders to lines of a table, JSON or CSV.

Memory holds one batch and the names in a folder, however many pictures there are.
"""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from pipeline.data.decode import SUFFIXES, Undecodable
from pipeline.deploy.predictor import UNKNOWN, Answer, Predictor
from pipeline.deploy.read_bundle import BundleError

Style = Literal["table", "json", "csv"]
WIDEST_CLASS = 40  # columns of the table


@dataclass(frozen=True, eq=False)
class Row:
    """One picture's answer, or the reason why there is none."""

    path: str
    answer: Answer | None
    error: str = ""


def find(places: Sequence[Path]) -> Iterator[Path]:
    """The given files, and all pictures at any depth in the given folders, each folder's sorted by path."""
    for place in places:
        if not place.exists():
            raise BundleError(f"{place}: there is no such file or folder.")
    for place in places:
        if place.is_dir():
            yield from _walk(place, set())
        else:
            yield place


def rows(predictor: Predictor, paths: Iterable[Path], *, threads: int = 1) -> Iterator[Row]:
    """One row for each path, in order. `threads` threads read and decode."""
    remaining = iter(paths)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(remaining, predictor.batch)):
            decoded = list(pool.map(lambda path: _pixels(predictor, path), batch))
            pixels = [each for each in decoded if isinstance(each, np.ndarray)]
            answers = iter(predictor.answers(np.stack(pixels)) if pixels else [])
            for path, each in zip(batch, decoded, strict=True):
                yield Row(str(path), None, each) if isinstance(each, str) else Row(str(path), next(answers))


def write(
    found: Iterable[Row], out: TextIO, *, style: Style, top: int, classes: Sequence[str]
) -> tuple[int, int]:
    """Write each row as it comes, with its `top` classes.

    Returns the number of rows, and the number of rows without an answer.
    """
    line = _line(style, top, classes)
    if style == "csv":
        numbers = ["", *(f"_{n}" for n in range(2, top + 1))]
        names = [f"{column}{number}" for number in numbers for column in ("class", "probability")]
        out.write(_csv(["path", *names, "error"]))
    count, failed = 0, 0
    for row in found:
        count, failed = count + 1, failed + (row.answer is None)
        out.write(line(row))
    return count, failed


def with_progress(found: Iterable[Row], out: TextIO, *, every: float) -> Iterator[Row]:
    """The same rows. Every `every` seconds their number is written to `out`."""
    begun = last = time.monotonic()
    for count, row in enumerate(found, 1):
        yield row
        if (now := time.monotonic()) - last >= every:
            last = now
            end = "\r" if out.isatty() else "\n"
            print(f"{_pictures(count)}, {count / (now - begun):.0f}/s", file=out, end=end, flush=True)


def command(predictor: Predictor, places: Sequence[Path], *, style: Style, top: int, threads: int) -> int:
    """What `predict` does. Returns 0, or 1 if a picture could not be read or there was none."""
    begun = time.monotonic()
    found = rows(predictor, find(places), threads=threads)
    if not sys.stdout.isatty():  # on a terminal the rows themselves show the progress
        found = with_progress(found, sys.stderr, every=0.5 if sys.stderr.isatty() else 30)
    top = min(top, len(predictor.bundle.classes))
    count, failed = write(found, sys.stdout, style=style, top=top, classes=predictor.bundle.classes)
    sys.stdout.flush()
    seconds = time.monotonic() - begun
    unread = f"; {failed:,} could not be read" if failed else ""
    speed = f"{count / max(seconds, 1e-9):.0f}/s"
    print(f"{_pictures(count)} in {seconds:.1f} s ({speed}){unread}.", file=sys.stderr)
    if not count:
        print(f"No pictures were found. Pictures end in {', '.join(sorted(SUFFIXES))}.", file=sys.stderr)
    return 1 if failed or not count else 0


def _pictures(count: int) -> str:
    return f"{count:,} {'picture' if count == 1 else 'pictures'}"


def printable(text: str) -> str:
    """Text that cannot steer a terminal: anybody may have chosen the names of files and classes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _line(style: Style, top: int, classes: Sequence[str]) -> Callable[[Row], str]:
    """A function from a row to its line."""
    if style == "json":
        return partial(_json_line, top=top)
    if style == "csv":
        return partial(_csv_line, top=top, answer_cells=2 * min(top, len(classes)))
    width = min(max(len(printable(name)) for name in (*classes, UNKNOWN)), WIDEST_CLASS)
    return partial(_table_line, top=top, width=width)


def _table_line(row: Row, *, top: int, width: int) -> str:
    if row.answer is None:
        return f"{'-':<{width}}         {printable(row.path)}: {printable(row.error)}\n"
    best = row.answer.labelled(top)
    cells = [f"{printable(name):<{width}} {probability:6.1%}" for name, probability in best]
    return f"{'  '.join(cells)}  {printable(row.path)}\n"


def _json_line(row: Row, *, top: int) -> str:
    if row.answer is None:
        return json.dumps({"path": row.path, "error": row.error}) + "\n"
    return json.dumps({"path": row.path, **row.answer.facts(top)}) + "\n"


def _csv_line(row: Row, *, top: int, answer_cells: int) -> str:
    best = row.answer.labelled(top) if row.answer else []
    cells = [cell for name, probability in best for cell in (name, f"{probability:.6f}")]
    empty = [""] * (answer_cells - len(cells))
    return _csv([row.path, *cells, *empty, row.error])


def _csv(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _walk(folder: Path, above: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link back to a folder above
        return
    with os.scandir(folder) as entries:  # a folder ends in / so that names sort as paths do
        names = sorted(f"{each.name}/" if each.is_dir() else each.name for each in entries if _is_shown(each))
    for name in names:
        if name.endswith("/"):
            yield from _walk(folder / name, above | {real})
        else:
            yield folder / name


def _is_shown(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a picture, and not hidden."""
    is_picture = os.path.splitext(entry.name)[1].lower() in SUFFIXES
    return not entry.name.startswith(".") and (entry.is_dir() or (is_picture and entry.is_file()))


def _pixels(predictor: Predictor, path: Path) -> np.ndarray | str:
    """The picture's pixels, or the reason why it cannot be read."""
    if not path.is_file():
        return "not a regular file"
    try:
        return predictor.decode(path)
    except Undecodable as error:
        return str(error)
