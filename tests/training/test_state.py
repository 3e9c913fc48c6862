"""A phase that is stopped and continued."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from world import QUICK, World, moved, snapshot

from pipeline.training import state
from pipeline.training.recipe import TrainConfig


@pytest.mark.parametrize(
    "extra",
    [{}, {"ema": 0.5}, {"optimizer": "adamw", "schedule": "onecycle"}],
    ids=["sgd", "ema", "onecycle"],
)
def test_a_stopped_phase_continues_to_the_same_weights(
    extra: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", 0.0)
    cfg = TrainConfig.model_validate({**QUICK.model_dump(), "epochs": 5, **extra})
    straight = World.make()
    curves = straight.fit(straight.method("kd"), cfg=cfg)

    class StoppedError(Exception):
        pass

    stopped, calls = World.make(), 0

    def validate(net: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StoppedError
        return {"val_accuracy": calls, "val_loss": 0.0}

    file = tmp_path / "distill.state"
    with pytest.raises(StoppedError):
        stopped.fit(stopped.method("kd"), cfg=cfg, validate=validate, state_file=file)
    continued = World.make(seed=9)  # another start: everything must come from the file
    continued.teacher = stopped.teacher
    resumed = continued.fit(continued.method("kd"), cfg=cfg, state_file=file)
    for name in curves.keys() - {"seconds"}:
        assert resumed[name] == curves[name], name
    assert not moved(snapshot(straight.student.net), snapshot(continued.student.net))


def test_a_finished_phase_is_not_trained_again(tmp_path: Path) -> None:
    world = World.make()
    first = world.fit(world.method("ce"), state_file=tmp_path / "s")
    weights = snapshot(world.student.net)
    again = World.make(seed=3)
    again.student.net.register_forward_hook(lambda *_: pytest.fail("it trained"))
    assert again.fit(again.method("ce"), state_file=tmp_path / "s") == first
    assert not moved(weights, snapshot(again.student.net))


def test_a_damaged_state_file_is_reported_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, other = World.make(), World.make()
    world.fit(world.method("ce"), state_file=tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(content[: len(content) // 2])
    other.fit(other.method("ce"), state_file=tmp_path / "s")
    assert "this phase starts again" in capsys.readouterr().out
    assert not moved(snapshot(world.student.net), snapshot(other.student.net))
