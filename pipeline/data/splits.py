"""Which picture belongs to train, val and test: pure functions of labels and content hashes.

- Files with the same pixels are one picture, and one of them remains: the one in the most held-out split. So
  a copy of a test picture leaves train, no picture is in two splits, and a published test set stays complete.
- The same pixels under different labels have no label: every copy is dropped and counted. This is no error,
  because published data sets have a few such pictures and nobody can correct them.
- The pictures of a class are ranked by a hash of (seed, content). The first go to test, the next to val. So
  file names, order, size and channels do not matter, and another share of val never moves a picture into test
  or out.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.store import SPLITS
from pipeline.settings import InputError


@dataclass(frozen=True)
class Entry:
    """One picture."""

    label: int
    split: str | None  # as given; None: to be assigned
    content: str  # hash of the file
    pixels: str  # hash of the pixels


@dataclass(frozen=True)
class Distinct:
    """Which pictures remain."""

    remaining: list[int]  # positions
    duplicates: int  # number of copies
    conflicts: list[int]  # positions of pictures with contradictory labels


def distinct(entries: Sequence[Entry]) -> Distinct:
    """Choose one entry of every picture."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        groups[entry.pixels].append(position)
    remaining, duplicates, conflicts = [], 0, []
    for group in groups.values():
        if len({entries[i].label for i in group}) > 1:
            conflicts += group
        else:
            remaining.append(
                min(group, key=lambda i: (-SPLITS.index(entries[i].split or "train"), entries[i].content))
            )
            duplicates += len(group) - 1
    return Distinct(sorted(remaining), duplicates, sorted(conflicts))


def assign(entries: Sequence[Entry], *, val: float, test: float, seed: int) -> list[str]:
    """The split of every entry: given splits stay, and missing ones are cut from train, class by class."""
    result = [entry.split or "train" for entry in entries]
    shares = {name: share for name, share in (("test", test), ("val", val)) if name not in result}
    pools: dict[int, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        if result[position] == "train":
            pools[entry.label].append(position)
    for pool in pools.values():
        ranked = sorted(pool, key=lambda i: hashlib.sha256(f"{seed}:{entries[i].content}".encode()).digest())
        start, wanted = 0, len(shares)  # each split still to come, train among them, needs one picture
        for name, share in shares.items():
            count = min(max(1, round(share * len(pool))), len(pool) - start - wanted)
            for position in ranked[start : start + count]:
                result[position] = name
            start, wanted = start + count, wanted - 1
    return result


def check(labels: Sequence[int], given: Sequence[str | None], classes: Sequence[str], where: str) -> None:
    """Raise InputError unless there are two classes and each can have a picture in every split.

    `given` holds the given splits; `where` names the data in the message.
    """
    if len(classes) < 2:
        found = f"there is only one class, {classes[0]!r}" if classes else "there is no class"
        raise InputError(f"{where}: {found}. At least two classes are needed. Add another class.")
    counts = Counter((label, split or "train") for label, split in zip(labels, given, strict=True))
    present = [split for split in SPLITS if any(key[1] == split for key in counts)]
    if "train" not in present:
        found = " and ".join(present) or "nothing"
        raise InputError(f"{where}: there are no training images, only {found}. Add a train split.")
    for label, name in enumerate(classes):
        sizes = {split: counts[label, split] for split in present}
        if problem := _problem_of_a_class(sizes):
            raise InputError(f"{where}: class {name!r} {problem}")


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
