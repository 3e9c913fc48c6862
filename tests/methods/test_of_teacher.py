"""Phases that read the teacher alone name every setting they read, so that no stale knowledge is accepted."""

import typing
from typing import Any

import pytest
import torch
from world import World, moved, snapshot

from pipeline import methods

# what else a value needs, none of it a setting of what the teacher's phases learn
NEEDED: dict[str, dict[str, Any]] = {
    "linear": {"image": False},
    "order": {"student_maps": ("stem", "stage1", "stage2", "stage3")},
}
NO_SETTING_OF_A_PHASE = ("name", "combine", "alternate")  # alternate: there is one phase of both


def phases_of_teacher(name: str) -> dict[int, tuple[str, ...]]:
    world = World.make()
    found = enumerate(world.method(name).phases(world.student))
    return {n: phase.of_teacher for n, phase in found if phase.of_teacher}


WITH_SUCH_PHASES = [name for name in methods.names() if phases_of_teacher(name)]


def others(name: str) -> list[tuple[str, Any]]:
    """Each setting of the method with another legal value."""
    found: list[tuple[str, Any]] = []
    for key, field in methods.load(name).Config.model_fields.items():
        default = field.default
        if key in NO_SETTING_OF_A_PHASE:
            continue
        if isinstance(default, bool):
            found.append((key, not default))
        elif isinstance(default, int):
            found.append((key, default + 1))
        elif isinstance(default, float):
            found.append((key, default * 0.5 or 0.5))
        elif isinstance(default, tuple):
            found.append((key, ("stage2", "stage3")))
        else:
            found += [(key, value) for value in typing.get_args(field.annotation) if value != default]
    return found


def learned(name: str, n: int, **settings: Any) -> dict[str, torch.Tensor]:
    """What the phase n has made of what it trains."""
    world = World.make()
    torch.manual_seed(0)
    method = world.method(name, **settings)
    world.fit(method, n)
    return snapshot(*method.phases(world.student)[n].trains)


@pytest.mark.parametrize("name", WITH_SUCH_PHASES)
def test_a_setting_that_changes_what_is_learned_is_named(name: str) -> None:
    for n, named in phases_of_teacher(name).items():
        usual = learned(name, n)
        changing = set()
        for key, value in others(name):
            needed = NEEDED.get(value, {}) if isinstance(value, str) else {}
            found = learned(name, n, **needed | {key: value})
            same = found.keys() == usual.keys() and all(found[k].shape == usual[k].shape for k in usual)
            if not same or moved(usual, found):
                changing.add(key)
        assert changing <= set(named), f"{name}: of_teacher lacks {sorted(changing - set(named))}"
        assert changing, name


def test_there_are_such_phases() -> None:
    assert "srm" in WITH_SUCH_PHASES
