"""Which picture belongs to train, val and test: pure functions of labels and content hashes.

- Files with the same pixels are one picture, and one of them remains: the one in the most held-out split. So
  a copy of a test picture leaves train, no picture is in two splits, and a published test set stays complete.
- The same pixels under different labels have no label: every copy is dropped and counted. This is no error,
  because published data sets have a few such pictures and nobody can correct them.
- An unlabelled picture with the same pixels as a labelled one is dropped.
- The pictures of a class are ranked by a hash of (seed, content). The first go to test, the next to val. So
  file names, order, size and channels do not matter, and another share of val never moves a picture into test
  or out.
- Pictures of one group stay together. Then whole groups are ranked and cut (`groups.py`).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from pipeline.data.groups import cut_groups
from pipeline.data.store import NO_LABEL, SPLITS, UNLABELLED
from pipeline.settings import InputError

GROUPS_WAY_OUT = "Add images of other groups, or give every image a split in the table."


class Placed(Protocol):
    """A picture of which this much is known."""

    @property
    def label(self) -> int: ...
    @property
    def split(self) -> str | None: ...
    @property
    def group(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture."""

    label: int
    split: str | None  # as given; None: to be assigned
    content: str  # hash of the file
    pixels: str  # hash of the pixels
    group: str = ""


@dataclass(frozen=True)
class Distinct:
    """Which pictures remain, and which do not because of another one."""

    remaining: list[int]  # positions
    copies: dict[int, int]  # position of a copy -> position of the picture that remains
    conflicts: dict[int, int]  # position -> position of the same pixels under another label


def distinct(entries: Mapping[int, Entry]) -> Distinct:
    """Choose one entry of every picture. The entries are given by their positions."""
    found = Distinct([], {}, {})
    for positions in _same(entries):
        first = min(positions, key=lambda i: _preference(entries[i]))
        others = [i for i in positions if entries[i].label not in (entries[first].label, NO_LABEL)]
        if others:
            found.conflicts.update({i: first if i in others else others[0] for i in positions})
        else:
            found.remaining.append(first)
            found.copies.update({i: first for i in positions if i != first})
    found.remaining.sort()
    return found


def _same(entries: Mapping[int, Entry]) -> Iterator[list[int]]:
    """The positions of each picture. To sort them takes far less memory than a list for each of a million."""

    def pixels(position: int) -> str:
        return entries[position].pixels

    for _, positions in groupby(sorted(entries, key=pixels), key=pixels):
        yield list(positions)


def _preference(entry: Entry) -> tuple[int, str, str]:
    """The least one remains: the one that is held out most."""
    order = (*reversed(SPLITS), UNLABELLED)
    return (order.index(entry.split or "train"), entry.content, entry.group)


def assign(entries: Sequence[Entry], *, val: float, test: float, seed: int) -> list[str]:
    """The split of every entry: given splits stay, and missing ones are cut from train, class by class."""
    result = [entry.split or "train" for entry in entries]
    shares = {name: share for name, share in (("test", test), ("val", val)) if name not in result}
    pools: dict[int, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        if result[position] == "train":
            pools[entry.label].append(position)
    if any(entries[i].group for pool in pools.values() for i in pool):
        parts = cut_groups({i: entries[i] for pool in pools.values() for i in pool}, shares, seed)
    else:
        parts = _cut(entries, pools.values(), shares, seed)
    for position, name in parts.items():
        result[position] = name
    return result


def _cut(
    entries: Sequence[Entry], pools: Iterable[list[int]], shares: Mapping[str, float], seed: int
) -> dict[int, str]:
    """The split of each entry that leaves train."""
    result: dict[int, str] = {}
    for pool in pools:
        ranked = sorted(pool, key=lambda i: hashlib.sha256(f"{seed}:{entries[i].content}".encode()).digest())
        start, wanted = 0, len(shares)  # each split still to come, train among them, needs one picture
        for name, share in shares.items():
            count = min(max(1, round(share * len(pool))), len(pool) - start - wanted)
            result |= dict.fromkeys(ranked[start : start + count], name)
            start, wanted = start + count, wanted - 1
    return result


def held_out(entries: Sequence[Entry], assigned: Sequence[str]) -> set[int]:
    """Positions of unlabelled entries of a group whose labelled ones are in val or test.

    Students may learn from unlabelled images, so these would show them what is held out.
    """
    groups = {
        entry.group for entry, split in zip(entries, assigned, strict=True) if split in ("val", "test")
    } - {""}
    return {i for i, entry in enumerate(entries) if assigned[i] == UNLABELLED and entry.group in groups}


def check(pictures: Sequence[Placed], classes: Sequence[str], where: str) -> None:
    """Raise InputError unless there are two classes and each can have a picture in every split.

    `where` names the data in the message.
    """
    if len(classes) < 2:
        found = f"there is only one class, {classes[0]!r}" if classes else "there is no class"
        raise InputError(f"{where}: {found}. At least two classes are needed. Add another class.")
    counts = Counter((each.label, each.split or "train") for each in pictures)
    present = [split for split in SPLITS if any(key[1] == split for key in counts)]
    if "train" not in present:
        found = " and ".join(present) or "nothing"
        raise InputError(f"{where}: there are no training images, only {found}. Add a train split.")
    groups = _count_groups(pictures)
    for label, name in enumerate(classes):
        sizes = {split: counts[label, split] for split in present}
        if problem := _problem_of_a_class(sizes) or _problem_of_groups(sizes, groups.get(label)):
            raise InputError(f"{where}: class {name!r} {problem}")


def check_assigned(
    entries: Sequence[Entry], assigned: Sequence[str], classes: Sequence[str], where: str
) -> None:
    """Raise InputError if a class has no picture in a split: whole groups cannot always be cut so."""
    having = {(entry.label, split) for entry, split in zip(entries, assigned, strict=True)}
    for label, name in enumerate(classes):
        if lacking := [split for split in SPLITS if (label, split) not in having]:
            raise InputError(
                f"{where}: no way was found to keep groups whole and to give class {name!r} an image in "
                f"{' and '.join(lacking)}. {GROUPS_WAY_OUT}"
            )


def _count_groups(pictures: Sequence[Placed]) -> dict[int, int]:
    """How many parts the training pictures of each class can be cut into; empty if there are no groups."""
    if not any(each.group for each in pictures):
        return {}
    parts = {
        (each.label, each.group or n) for n, each in enumerate(pictures) if (each.split or "train") == "train"
    }
    return Counter(label for label, _ in parts)


def _problem_of_groups(sizes: Mapping[str, int], groups: int | None) -> str:
    missing = [split for split in SPLITS if split not in sizes]
    if groups is None or groups > len(missing):
        return ""
    return (
        f"has usable training images of {groups} group(s), but {1 + len(missing)} groups are needed, because "
        f"{' and '.join(missing)} must be cut from them and a group stays whole. {GROUPS_WAY_OUT}"
    )


def _problem_of_a_class(sizes: Mapping[str, int]) -> str:
    """Why a class cannot have a picture in every split, or "". `sizes`: its pictures in each given split."""
    having = [split for split, count in sizes.items() if count]
    if not having:
        return "has no usable image. Add images of it or remove the class."
    if "train" not in having:
        return (
            f"is present in {' and '.join(having)} only, so no network can learn it. "
            "Add training images of it, or remove it there."
        )
    if lacking := [split for split in sizes if split not in having]:
        return (
            f"has no image in {' and '.join(lacking)}, but every class needs one in every split. "
            "Add images of it there, or remove the folder of that split, so that the split is cut from train."
        )
    missing = [split for split in SPLITS if split not in sizes]
    if sizes["train"] <= len(missing):
        return (
            f"has {sizes['train']} usable image(s) (copies are not counted), but {1 + len(missing)} are "
            f"needed, because {' and '.join(missing)} must be cut from them. "
            "Add images of it or remove the class."
        )
    return ""
