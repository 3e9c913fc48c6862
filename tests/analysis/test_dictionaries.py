from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from world import World

from pipeline.analysis.dictionaries import HasDictionaries, draw, is_dead, words
from pipeline.methods.srm import SparseRepresentationMatching


class Found(NamedTuple):
    atoms: int
    used: int
    error: float
    wins: list[int]


def srm() -> tuple[SparseRepresentationMatching, World]:
    world = World.make()
    method = world.method("srm").eval()
    assert isinstance(method, SparseRepresentationMatching)
    assert isinstance(method, HasDictionaries)
    return method, world


def test_health_counts_the_pixels_that_each_atom_wins() -> None:
    method, world = srm()
    answers = [world.step(12).teacher, world.step(5).teacher]
    found = method.health(iter(answers))
    assert list(found) == world.step(2).teacher.body
    for name, health in found.items():
        pixels = sum(answer.maps[name][:, 0].numel() for answer in answers)
        assert (sum(health.wins), len(health.wins)) == (pixels, health.atoms)
        assert sum(n > 0 for n in health.wins) == health.used


def test_an_atom_that_no_pixel_is_similar_to_wins_nothing() -> None:
    method, world = srm()
    with torch.no_grad():
        for name, atoms in method.named_parameters():
            if name.startswith("dictionary.") and name.endswith(".atoms"):
                atoms[1:] = -100.0  # maps are not negative
    found = method.health([world.step().teacher])
    assert found
    for health in found.values():
        assert health.wins[1:] == [0] * (health.atoms - 1)
        assert health.used == 1
        assert is_dead(health)


@pytest.mark.parametrize(
    ("used", "error", "dead"),
    [(32, 0.5, False), (16, 0.5, False), (15, 0.5, True), (32, 0.95, True), (32, 0.9, False)],
)
def test_a_dictionary_with_few_atoms_in_use_or_a_large_error_is_dead(
    used: int, error: float, dead: bool
) -> None:
    assert is_dead(Found(32, used, error, [])) == dead


def test_a_method_without_dictionaries_has_none() -> None:
    assert not isinstance(World.make().method("kd"), HasDictionaries)


def test_the_state_of_a_dictionary_is_described_and_drawn(tmp_path: Path) -> None:
    health = Found(4, 2, 1.7, [5, 0, 1, 0])
    assert words(health) == "2 of 4 atoms in use, 100% of the variance lost"
    draw({"stage1": health}, tmp_path / "use.png")
    assert (tmp_path / "use.png").stat().st_size > 500
