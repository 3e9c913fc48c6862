"""Files that do not become images: how they are counted, listed and refused."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import InputError

SHOWN = 5  # files that a message names


@dataclass(frozen=True, order=True, slots=True)
class LeftOut:
    """A file that does not become an image, and why."""

    path: str
    kind: str  # the same for all files with this fault
    reason: str


def count(files: Iterable[LeftOut]) -> dict[str, int]:
    """The number of files of each kind, the most frequent kind first."""
    counts = Counter(file.kind for file in files)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def in_words(counts: Mapping[str, int]) -> str:
    """Such as `truncated: 12, empty: 3`."""
    return ", ".join(f"{kind}: {n:,}" for kind, n in counts.items())


def named(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def write_list(path: Path, files: Iterable[LeftOut]) -> None:
    """All of them as a table."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "kind", "reason"])
        table.writerows([each.path, each.kind, each.reason] for each in sorted(files))


def refuse_bad(
    bad: Sequence[LeftOut], files: int, *, where: str, most: float | None, listed: Path | None
) -> None:
    """Raise InputError if there are bad files, or if they are more than the share `most` of all files.

    The whole list goes to the file `listed`, which is removed if nothing is wrong.
    """
    if listed:
        listed.unlink(missing_ok=True)
    if len(bad) <= (0 if most is None else most * files):
        return
    whole = ""
    if listed:
        listed.parent.mkdir(parents=True, exist_ok=True)
        write_list(listed, bad)
        whole = f" The whole list is in {listed}."
    examples = named([f"{file.path} ({file.reason})" for file in bad])
    raise InputError(
        f"{where}: {len(bad):,} of {files:,} files are no usable images ({in_words(count(bad))}): {examples}."
        f"{whole} {_way_out(len(bad) / files, most)}"
    )


def _way_out(share: float, most: float | None) -> str:
    if most is None:
        return "Repair or delete them, or leave them out with data.on_bad: skip."
    return (
        f"That is {share:.2%} of the files, and data.max_bad allows {most:.2%}. Repair or delete them, or "
        "raise data.max_bad."
    )
