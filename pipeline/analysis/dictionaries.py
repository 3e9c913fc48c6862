"""Whether the dictionaries that a method codes a teacher's pixels with are alive (SRM): atoms in use, and what the codes miss.

A dictionary is called dead where fewer than half of its atoms win any pixel, or its codes miss nine tenths of the pixels' variance: SRM's
labels are then of few kinds or have little to do with the image. Its healthy ones have all atoms in use and miss half of the variance.
"""

from collections.abc import Iterable, Mapping
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from pipeline.analysis.drawing import Use, uses
from pipeline.taps import View

FEWEST = 0.5  # of the atoms
MISSED = 0.9  # of the variance


class Dictionary(Protocol):
    atoms: Tensor

    def prepared(self, pixels: Tensor) -> Tensor: ...

    def code(self, pixels: Tensor, kept: int) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Coder(Protocol):
    """A method that has a dictionary for each of some stages of the teacher."""

    kept: dict[str, int]  # stage -> atoms in a pixel's code
    dictionary: Any  # nn.ModuleDict, a Dictionary a stage in the order of `kept`

    def health(self, views: Iterable[View]) -> Mapping[str, Any]: ...


class Condition(NamedTuple):
    """Of the dictionary of a stage."""

    atoms: int
    used: int  # that win at least one pixel
    effective: float  # as many atoms that win equally often would be as hard to guess
    error: float  # share of the pixels' variance
    wins: list[int]  # pixels, by atom

    @property
    def dead(self) -> bool:
        return self.used < FEWEST * self.atoms or self.error > MISSED

    def words(self) -> str:
        return f"{self.used} of {self.atoms} atoms in use, {min(self.error, 1):.0%} of the variance missed"


@torch.no_grad()
def conditions(coder: Coder, views: Iterable[View]) -> dict[str, Condition]:
    """What the dictionaries make of a teacher's views."""
    coded, seen = tee(views)
    wins: dict[str, Tensor] = {}
    for view in seen:
        dictionary: Dictionary
        for (stage, kept), dictionary in zip(coder.kept.items(), coder.dictionary.values(), strict=True):
            pixels = dictionary.prepared(view.stages[stage].flatten(2).transpose(1, 2))
            won = torch.bincount(dictionary.code(pixels, kept)[1].flatten(), minlength=len(dictionary.atoms))
            wins[stage] = wins[stage] + won if stage in wins else won
    health = coder.health(coded)
    return {stage: Condition(**health[stage]._asdict(), wins=won.tolist()) for stage, won in wins.items()}


def draw(found: Mapping[str, Condition], out: Path) -> None:
    panels = [Use(stage, condition.words(), condition.wins, condition.dead) for stage, condition in found.items()]
    uses(panels, out, told="Atoms from the most used to the least, by the share of pixels they win; red at the bottom: none.")
