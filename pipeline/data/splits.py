"""Which picture belongs to train, val and test: pure functions of labels and content hashes.

- Two files with the same pixels are one picture. One of them stays: the one in the most held-out given split (a copy of a test picture
  leaves train), so that nothing straddles and a published test set stays whole.
- The same pixels under different labels have no label at all: every copy is dropped and counted. They are no error, because published
  data sets have a few and nobody can mend those.
- Within a class pictures are ranked by a hash of (seed, content); the first go to test, the next to val. So neither file names, order,
  size nor channels matter, and changing the share of val never moves a picture into or out of test.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.store import SPLITS
from pipeline.inputs import InputError


@dataclass(frozen=True)
class Entry:
    """One picture: its class, the split it was given (None: to be cut), and the hashes of its file and of its pixels."""

    label: int
    split: str | None
    content: str
    pixels: str


@dataclass(frozen=True)
class Distinct:
    """Positions of the pictures that stay, how many copies went, and the positions dropped for contradictory labels."""

    kept: list[int]
    duplicates: int
    conflicts: list[int]


def distinct(entries: Sequence[Entry]) -> Distinct:
    """One entry for every picture."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        groups[entry.pixels].append(position)
    kept, duplicates, conflicts = [], 0, []
    for group in groups.values():
        if len({entries[i].label for i in group}) > 1:
            conflicts += group
        else:
            kept.append(min(group, key=lambda i: (-SPLITS.index(entries[i].split or "train"), entries[i].content)))
            duplicates += len(group) - 1
    return Distinct(sorted(kept), duplicates, sorted(conflicts))


def assign(entries: Sequence[Entry], *, val: float, test: float, seed: int) -> list[str]:
    """The split of every entry: given splits stay, missing ones are cut from train, class by class."""
    result = [entry.split or "train" for entry in entries]
    shares = {name: share for name, share in (("test", test), ("val", val)) if name not in result}
    pools: dict[int, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        if result[position] == "train":
            pools[entry.label].append(position)
    for pool in pools.values():
        ranked = sorted(pool, key=lambda i: hashlib.sha256(f"{seed}:{entries[i].content}".encode()).digest())
        start, wanted = 0, len(shares)  # one picture each for the splits still to come, train among them
        for name, share in shares.items():
            count = min(max(1, round(share * len(pool))), len(pool) - start - wanted)
            for position in ranked[start : start + count]:
                result[position] = name
            start, wanted = start + count, wanted - 1
    return result


def check(labels: Sequence[int], given: Sequence[str | None], classes: Sequence[str], where: str) -> None:
    """InputError unless there are two classes and each can have a picture in every split. `where` names the data in the message."""
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class"
        raise InputError(f"{where}: {found}, was found, and telling classes apart takes at least two. Add another class.")
    counts = Counter((label, split or "train") for label, split in zip(labels, given, strict=True))
    present = [split for split in SPLITS if any(key[1] == split for key in counts)]
    if "train" not in present:
        raise InputError(f"{where}: there are no training images, only {' and '.join(present) or 'nothing'}. Add a train split.")
    needed = 1 + len(SPLITS) - len(present)
    for label, name in enumerate(classes):
        having = [split for split in present if counts[label, split]]
        if not having:
            raise InputError(f"{where}: class {name!r} has no usable image. Add images of it or remove the class.")
        if "train" not in having:
            raise InputError(
                f"{where}: class {name!r} is present in {' and '.join(having)} only, so nothing could learn it. "
                "Add training images of it or remove it there."
            )
        if lacking := [split for split in present if split not in having]:
            raise InputError(
                f"{where}: class {name!r} has no image in {' and '.join(lacking)}; every class needs at least one in every split. "
                "Add images of it there, or remove that split's folder so that it is cut from train."
            )
        if counts[label, "train"] < needed:
            cut = " and ".join(split for split in SPLITS if split not in present)
            raise InputError(
                f"{where}: class {name!r} has {counts[label, 'train']} usable image(s) (copies don't count), but {needed} are needed "
                f"because {cut} must be cut from them. Add images of it or remove the class."
            )
