from dataclasses import replace
from typing import Any

import pytest
import torch
from world import QUICK, World, moved, snapshot

from pipeline.methods.eskd import Config


def values(
    world: World, progress: float, name: str = "eskd", **settings: Any
) -> dict[str, tuple[float, float]]:
    step = replace(world.step(), progress=progress)
    return {
        term: (value.item(), weight)
        for term, (value, weight) in world.method(name, **settings).loss(step).items()
    }


@pytest.mark.parametrize("progress", [0.0, 0.49])
def test_before_the_stop_the_loss_is_that_of_kd_or_at(progress: float) -> None:
    world = World.make()
    assert values(world, progress, stop=0.5) == values(world, 0.0, "kd", ce_weight=1.0, kd_weight=1.0)
    assert values(world, progress, of="at", stop=0.5) == values(world, 0.0, "at", kd_weight=1.0)
    settings: dict[str, Any] = {"student_maps": ["stage2"], "teacher_maps": ["stage1"], "kd_weight": 0.0}
    assert values(world, progress, of="at", stop=0.5, **settings) == values(world, 0.0, "at", **settings)


@pytest.mark.parametrize("progress", [0.5, 0.99])
def test_after_the_stop_only_the_labels_count(progress: float) -> None:
    world = World.make()
    before, after = (values(world, p, of="at", stop=0.5, term_weight=7.0) for p in (0.0, progress))
    assert after == {"ce": before["ce"], "kd": (0.0, 1.0), "attention": (0.0, 7.0)}
    assert values(world, progress, stop=0.5).keys() == {"ce", "kd"}


@pytest.mark.parametrize("of", ["kd", "at"])
def test_the_gradient_after_the_stop_is_that_of_the_labels(of: str) -> None:
    world = World.make()
    gradients = []
    for name, settings in (("ce", {}), ("eskd", {"of": of})):
        world.student.net.zero_grad()
        loss = world.method(name, **settings).loss(replace(world.step(), progress=0.9))
        torch.autograd.backward(torch.stack([term.weight * term.value for term in loss.values()]).sum())
        gradients.append([p.grad for p in world.student.net.parameters()])
    for of_labels, stopped in zip(*gradients, strict=True):
        assert torch.equal(of_labels, stopped)


def test_the_teacher_does_not_run_after_the_stop() -> None:
    world, passes = World.make(), []
    method = world.method("eskd", of="at", stop=0.5)
    world.teacher.net.register_forward_hook(lambda *_: passes.append(1))
    steps = 2 * len(world.batches(QUICK.batch_size))
    curves = world.fit(method)
    assert len(passes) == steps // 2
    assert curves["kd"][0] > 0
    assert [curves[term][1] for term in ("kd", "attention")] == [0, 0]
    assert {len(column) for column in curves.values()} == {QUICK.epochs}


def test_a_stop_at_the_end_changes_nothing() -> None:
    worlds = []
    for name, settings in (
        ("kd", {"ce_weight": 0.0, "kd_weight": 1.0}),
        ("eskd", {"ce_weight": 0.0, "stop": 1.0}),
    ):
        worlds.append(World.make())
        worlds[-1].fit(worlds[-1].method(name, **settings))
    assert not moved(*(snapshot(world.student.net) for world in worlds))


def test_a_stop_without_a_weight_of_the_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.ce_weight is 0.*after method\.stop \(0\.625\)"):
        World.make().method("eskd", ce_weight=0.0)


@pytest.mark.parametrize("stop", [0.0, 1.5])
def test_a_stop_outside_of_the_phase_is_refused(stop: float) -> None:
    with pytest.raises(ValueError, match="stop"):
        Config(name="eskd", stop=stop)
