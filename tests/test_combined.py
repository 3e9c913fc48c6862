"""Two methods at once; test_contract.py trains some pairs."""

import pytest
import torch
from world import World, moved, snapshot

from pipeline.combined import Combined


def test_the_loss_is_the_methods_own_and_the_partners_terms() -> None:
    world = World.make()
    both = world.method("at", kd_weight=0.5, combine={"name": "rkd", "term_weight": 7.0})
    alone, partner = world.method("at", kd_weight=0.5), world.method("rkd", ce_weight=0.0, kd_weight=0.0, term_weight=7.0)
    (phase,) = both.phases(world.student)
    expected = alone.loss(world.step()) | {f"rkd {name}": term for name, term in partner.loss(world.step()).items()}
    found = phase.loss(world.step())
    assert list(found) == ["ce", "kd", "attention", "rkd distance", "rkd angle"]
    assert {name: (term.value.item(), term.weight) for name, term in found.items()} == {
        name: (pytest.approx(term.value.item()), term.weight) for name, term in expected.items()
    }


def test_earlier_phases_of_both_come_before_the_one_last() -> None:
    world = World.make()
    method = world.method("fitnet", combine={"name": "fsp"})
    assert [phase.name for phase in method.phases(world.student)] == ["hint", "flow", "distill"]


def test_both_hooks_are_called() -> None:
    world = World.make()
    method = world.method("at", combine={"name": "crd"})
    assert isinstance(method, Combined)
    before = snapshot(method.partner)
    world.fit(method)
    assert any("memories" in name for name in moved(before, snapshot(method.partner)))  # crd remembers after the backward pass


def test_notes_of_both_are_taken_once() -> None:
    method = World.make().method("at", combine={"name": "crd"})
    assert isinstance(method, Combined)
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    method.main.notes, method.partner.notes = {"a": one}, {"b": two}
    assert method.take_notes() == {"a": one, "b": two}
    assert method.take_notes() == {}
