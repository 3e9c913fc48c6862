"""The state of the dictionaries that code a teacher's pixels (SRM): which atoms are in use, what is lost.

A dictionary is called dead if fewer than half of its atoms win any pixel, or if its codes lose more than nine
tenths of the pixels' variance. Labels made from a dead dictionary are of few kinds, or have little to do with
the image.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipeline.analysis.drawing import Use, uses
from pipeline.taps.answer import Answer

FEWEST = 0.5  # share of the atoms
MOST_LOST = 0.9  # share of the variance


class Health(Protocol):
    """What a method reports of the dictionary of one map."""

    @property
    def atoms(self) -> int: ...
    @property
    def used(self) -> int: ...  # atoms that win at least one pixel
    @property
    def error(self) -> float: ...  # share of the pixels' variance that the codes lose
    @property
    def wins(self) -> Sequence[int]: ...  # pixels that each atom wins

    def _asdict(self) -> dict[str, Any]: ...


@runtime_checkable
class HasDictionaries(Protocol):
    """A method with a dictionary for each of some maps of the teacher."""

    def health(self, answers: Iterable[Answer]) -> Mapping[str, Health]: ...


def is_dead(health: Health) -> bool:
    return health.used < FEWEST * health.atoms or health.error > MOST_LOST


def words(health: Health) -> str:
    return f"{health.used} of {health.atoms} atoms in use, {min(health.error, 1):.0%} of the variance lost"


def draw(found: Mapping[str, Health], out: Path) -> None:
    panels = [Use(name, words(health), health.wins, is_dead(health)) for name, health in found.items()]
    legend = (
        "Atoms from the most used to the least, by the share of pixels they win; red at the bottom: unused."
    )
    uses(panels, out, legend=legend)
