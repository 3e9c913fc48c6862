"""What every method owes, whatever it computes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from world import World, moved, snapshot

from pipeline import checkpoint, methods
from pipeline.methods.base import Method
from pipeline.taps import Step, View

VARIANTS: list[tuple[str, dict]] = [(name, {}) for name in methods.names()] + [
    ("fitnet", {"joint": True}),
    ("kd", {"ce_weight": 0.0}),
    ("knowledge_representing", {"sparse": False}),
    ("at", {"combine": {"name": "crd"}}),
    ("fitnet", {"combine": {"name": "fsp"}}),
    ("vid", {"combine": {"name": "jacobian"}}),
]
every_method = pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=lambda v: v if isinstance(v, str) else v.get("combine", {}).get("name") or ",".join(v) or "default"
)


@every_method
def test_phases_are_named_apart_and_end_in_distill(name: str, settings: dict) -> None:
    world = World.make()
    phases = [phase.name for phase in world.method(name, **settings).phases(world.student)]
    assert phases[-1] == "distill"
    assert len(set(phases)) == len(phases)


@every_method
def test_terms_are_finite_scalars_with_a_gradient(name: str, settings: dict) -> None:
    world = World.make()
    method = world.method(name, **settings)
    for phase in method.phases(world.student):
        for term, (value, weight) in phase.loss(world.step()).items():
            assert value.shape == (), term
            assert value.isfinite(), term
            assert weight > 0, term
            assert value.requires_grad, term


@every_method
def test_a_phase_moves_what_it_trains_and_nothing_else(name: str, settings: dict) -> None:
    world = World.make()
    method = world.method(name, **settings)
    teacher = snapshot(world.teacher.net)
    trainable = {name for name, _ in _parameters(world, method)}
    seen: set[str] = set()
    for n, phase in enumerate(method.phases(world.student)):
        inside = {id(t) for module in phase.trains for t in (*module.parameters(), *module.buffers())}
        own = {
            f"{k}.{key}"
            for k, m in enumerate((world.student.net, method))
            for key, t in m.state_dict(keep_vars=True).items()
            if id(t) in inside
        }
        before = snapshot(world.student.net, method)
        world.fit(method, n)
        changed = moved(before, snapshot(world.student.net, method))
        assert changed <= own, f"{phase.name} moves what isn't its own: {sorted(changed - own)[:5]}"
        assert own & trainable <= changed, f"{phase.name} leaves still: {sorted(own & trainable - changed)[:5]}"
        seen |= changed
    assert trainable <= seen
    assert not moved(teacher, snapshot(world.teacher.net))


def _parameters(world: World, method: Method) -> list[tuple[str, Tensor]]:
    return [(f"{k}.{key}", p) for k, module in enumerate((world.student.net, method)) for key, p in module.named_parameters()]


@every_method
def test_going_on_in_a_new_process_gives_the_same_student(name: str, settings: dict, tmp_path: Path) -> None:
    straight = World.make()
    method = straight.method(name, **settings)
    for n in range(len(method.phases(straight.student))):
        straight.fit(method, n)

    first = World.make()
    method = first.method(name, **settings)
    for n in range(len(method.phases(first.student)) - 1):
        first.fit(method, n)
    checkpoint.save_net(tmp_path, first.student.net.state_dict(), {})
    checkpoint.save_weights(tmp_path / "method.safetensors", method.state_dict())

    second = World.make()
    method = second.method(name, **settings)
    second.student.net.load_state_dict(checkpoint.load_net(tmp_path)[0])
    method.load_state_dict(checkpoint.load_weights(tmp_path / "method.safetensors"))
    second.fit(method)
    assert not moved(snapshot(straight.student.net), snapshot(second.student.net))


@every_method
def test_terms_can_be_had_from_ready_views(name: str, settings: dict) -> None:
    world = World.make()
    method = world.method(name, **settings).eval()
    live, seen = world.step(), world.step()
    for step in (live, seen):
        step.images.requires_grad_()  # so that the views lead back to the images, for jacobian
    ready = Step.of(student=seen.student, teacher=seen.teacher, labels=seen.labels, index=seen.index, images=seen.images)
    for phase in method.phases(world.student):
        values = []
        for step in (live, ready):
            torch.manual_seed(0)  # the same noise, for kdgan
            values.append({term: weighted.value.item() for term, weighted in phase.loss(step).items()})
        assert values[0] == values[1]


def test_the_student_alone_never_runs_a_teacher() -> None:
    world = World.make()
    world.teacher.net.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    world.fit(world.method("ce"))


def test_kd_between_different_class_sets_is_refused() -> None:
    world = World.make()
    live = world.step(4)
    teacher = View(live.teacher.logits[:, :2], live.teacher.stages, live.teacher.pooled, live.teacher.preactivations)
    probe = Step.of(student=live.student, teacher=teacher, labels=live.labels, index=live.index)
    with pytest.raises(ValueError, match=r"method\.kd_weight.*2 classes apart and the student 3"):
        methods.load("kd")(methods.load("kd").Config(name="kd"), probe, live.labels)
