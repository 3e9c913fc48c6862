from pathlib import Path

import pytest
import torch
from world import World

from pipeline.analysis.dictionaries import Coder, Condition, conditions, draw


def coder() -> tuple[Coder, World]:
    world = World.make()
    method = world.method("srm").eval()
    assert isinstance(method, Coder)
    return method, world


def test_conditions_count_the_pixels_each_atom_wins() -> None:
    method, world = coder()
    views = [world.step(12).teacher, world.step(5).teacher]
    found = conditions(method, iter(views))
    assert list(found) == list(method.kept)
    health = method.health(views)
    for stage, condition in found.items():
        assert condition[:4] == health[stage]
        pixels = sum(view.stages[stage].shape[0] * view.stages[stage].shape[2] * view.stages[stage].shape[3] for view in views)
        assert (sum(condition.wins), len(condition.wins)) == (pixels, condition.atoms)
        assert sum(n > 0 for n in condition.wins) == condition.used


def test_an_atom_that_nothing_is_like_wins_nothing() -> None:
    method, world = coder()
    with torch.no_grad():
        for dictionary in method.dictionary.values():
            dictionary.atoms[1:] = -100.0  # maps are not negative
    for condition in conditions(method, [world.step().teacher]).values():
        assert condition.wins[1:] == [0] * (condition.atoms - 1)
        assert condition.used == 1
        assert condition.dead


@pytest.mark.parametrize(
    ("used", "error", "dead"), [(32, 0.5, False), (16, 0.5, False), (15, 0.5, True), (32, 0.95, True), (32, 0.9, False)]
)
def test_few_atoms_or_much_missed_is_death(used: int, error: float, dead: bool) -> None:
    assert Condition(32, used, 3.0, error, []).dead == dead


def test_a_method_without_dictionaries_is_no_coder() -> None:
    assert not isinstance(World.make().method("kd"), Coder)


def test_words_and_picture(tmp_path: Path) -> None:
    found = {"stage1": Condition(4, 2, 1.5, 1.7, [5, 0, 1, 0])}
    assert found["stage1"].words() == "2 of 4 atoms in use, 100% of the variance missed"
    draw(found, tmp_path / "use.png")
    assert (tmp_path / "use.png").stat().st_size > 500
