"""A method with a partner. test_contract.py trains some of them."""

import pytest
import torch
from world import World, moved, snapshot

from pipeline.methods._combined import Combined


def test_the_loss_is_that_of_the_method_and_the_terms_of_the_partner() -> None:
    world = World.make()
    both = world.method("at", kd_weight=0.5, combine={"name": "rkd", "term_weight": 7.0})
    main = world.method("at", kd_weight=0.5)
    partner = world.method("rkd", ce_weight=0.0, kd_weight=0.0, term_weight=7.0)
    (phase,) = both.phases(world.student)
    terms_of_partner = partner.loss(world.step()).items()
    expected = main.loss(world.step()) | {f"rkd {name}": term for name, term in terms_of_partner}
    loss = phase.loss(world.step())
    assert list(loss) == ["ce", "kd", "attention", "rkd distance", "rkd angle"]
    for name, term in loss.items():
        assert term.value.item() == pytest.approx(expected[name].value.item()), name
        assert term.weight == expected[name].weight, name


def test_the_earlier_phases_of_both_come_before_the_last_one() -> None:
    world = World.make()
    method = world.method("fitnet", combine={"name": "fsp"})
    assert [phase.name for phase in method.phases(world.student)] == ["hint", "flow", "distill"]


def test_after_backward_of_both_is_called() -> None:
    world = World.make()
    method = world.method("at", combine={"name": "crd"})
    assert isinstance(method, Combined)
    before = snapshot(method.partner)
    world.fit(method)
    # crd changes its memories in after_backward
    assert any("memories" in name for name in moved(before, snapshot(method.partner)))


def test_the_notes_of_both_are_taken_once() -> None:
    method = World.make().method("at", combine={"name": "crd"})
    assert isinstance(method, Combined)
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    method.main.notes, method.partner.notes = {"a": one}, {"b": two}
    assert method.take_notes() == {"a": one, "b": two}
    assert method.take_notes() == {}
