"""Splits that keep groups whole: all pictures of a patient, a product or a film are in one of them.

Groups are ranked by a hash of (seed, group), and a picture without a group is a group of its own. A split
takes first, for every class that it lacks, the group that fits best. Then it takes, by rank, each group that
brings the counts of the classes nearer to the wanted shares. It never takes the last groups of a class that
the splits after it need. This is greedy: it is simple, and near enough to the shares where groups are small.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Protocol


class Grouped(Protocol):
    """A picture of a group."""

    @property
    def label(self) -> int: ...
    @property
    def content(self) -> str: ...
    @property
    def group(self) -> str: ...


def cut_groups(pool: Mapping[int, Grouped], shares: Mapping[str, float], seed: int) -> dict[int, str]:
    """The split of each picture that leaves train. `pool` holds the training pictures by position."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, picture in pool.items():
        members[_name(picture)].append(position)
    free = {name: Counter(pool[i].label for i in members[name]) for name in _ranked(members, seed)}
    sizes = Counter(picture.label for picture in pool.values())
    result: dict[int, str] = {}
    for n, (split, share) in enumerate(shares.items()):
        wanted = Counter({label: max(1, round(share * count)) for label, count in sizes.items()})
        for name in _Part(free, wanted, needed_later=len(shares) - n).fill():
            result |= dict.fromkeys(members[name], split)
            del free[name]
    return result


def _name(picture: Grouped) -> str:
    return f"group {picture.group}" if picture.group else f"picture {picture.content}"


def _ranked(names: Mapping[str, list[int]], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


class _Part:
    """One split that takes groups from those that are `free`: by rank, with their pictures of each class."""

    def __init__(self, free: Mapping[str, Counter[int]], wanted: Counter[int], *, needed_later: int) -> None:
        self.free, self.wanted, self.lacking = free, wanted, Counter(wanted)
        self.holders: dict[int, list[str]] = defaultdict(list)
        for name, counts in free.items():
            for label in counts:
                self.holders[label].append(name)
        self.spare = Counter({label: len(names) - needed_later for label, names in self.holders.items()})
        self.taken: dict[str, None] = {}

    def fill(self) -> list[str]:
        """The groups that it takes."""
        for label in sorted(self.wanted, key=lambda label: (self.spare[label], label)):  # the rarest first
            fitting = [name for name in self.holders[label] if self._may_take(name)]
            if fitting and self.lacking[label] == self.wanted[label]:
                self._take(max(fitting, key=self._nearer))
        for name in self.free:
            if self._may_take(name) and self._nearer(name) > 0:
                self._take(name)
        return list(self.taken)

    def _may_take(self, name: str) -> bool:
        return name not in self.taken and all(self.spare[label] > 0 for label in self.free[name])

    def _take(self, name: str) -> None:
        self.taken[name] = None
        self.lacking.subtract(self.free[name])
        self.spare.subtract(self.free[name].keys())

    def _nearer(self, name: str) -> int:
        """By how many pictures the group brings the classes nearer to what is wanted."""
        counts = self.free[name].items()
        return sum(abs(self.lacking[label]) - abs(self.lacking[label] - n) for label, n in counts)
