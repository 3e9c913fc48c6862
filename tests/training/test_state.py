"""A phase that is stopped and continued."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from world import QUICK, World, moved, snapshot

from pipeline.records.selection import Select
from pipeline.training import state
from pipeline.training.recipe import TrainConfig


class StoppedError(Exception):
    pass


def stopped_after(count: int, scores: Sequence[float] = ()) -> Callable[[nn.Module], dict[str, float]]:
    """A validation that stops the training after so many calls; it gives `scores`, or ever better ones."""
    calls = iter(scores or range(count))
    left = iter(range(count))

    def validate(net: nn.Module) -> dict[str, float]:
        if next(left, None) is None:
            raise StoppedError
        return {"val_accuracy": float(next(calls)), "val_loss": 0.0}

    return validate


def world_of(seed: int = 0) -> World:
    """A world whose student has pretrained weights in all but its classifier."""
    world = World.make(seed=seed)
    names = {name for name, _ in world.student.net.named_parameters()}
    world.student.loaded = frozenset(name for name in names if not name.startswith(world.student.classifier))
    return world


GROUPS = {"pretrained_lr": 0.1, "decay": "weights", "weight_decay": 0.1}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"ema": 0.5},
        {"optimizer": "adamw", "schedule": "onecycle"},
        {"schedule": "constant", "warmup": 0.8},
        {"schedule": "cosine", "warmup": 0.8},
        {"schedule": "cosine", "warmup": 0.3},
        {"schedule": "step", "warmup": 0.4},
        {"schedule": "onecycle", "warmup": 0.8},
        {"epochs": 0, "steps": 13, "schedule": "cosine"},
        {"clip": 0.05},
        {"optimizer": "adamw", "schedule": "onecycle", **GROUPS},
        {"schedule": "cosine", "warmup": 0.8, **GROUPS},
        {"label_smoothing": 0.2},
    ],
    ids=lambda extra: ",".join(map(str, extra.values())) or "sgd",
)
def test_a_stopped_phase_continues_to_the_same_weights(
    extra: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", 0.0)
    cfg = TrainConfig.model_validate({**QUICK.model_dump(), "epochs": 5, **extra})
    straight = world_of()
    curves = straight.fit(straight.method("kd"), cfg=cfg)
    stopped, file = world_of(), tmp_path / "distill.state"
    with pytest.raises(StoppedError):
        stopped.fit(stopped.method("kd"), cfg=cfg, validate=stopped_after(3), state_file=file)
    continued = world_of(seed=9)  # another start: everything must come from the file
    continued.teacher = stopped.teacher
    resumed = continued.fit(continued.method("kd"), cfg=cfg, state_file=file)
    for name in curves.keys() - {"seconds"}:
        assert resumed[name] == curves[name], name
    assert not moved(snapshot(straight.student.net), snapshot(continued.student.net))


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_stopped_phase_ends_with_the_same_patience(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", 0.0)
    scores = [0.1, 0.6, 0.5, 0.4, 0.3, 0.9, 0.9]  # the best of the first five is the second
    cfg = QUICK.model_copy(update={"epochs": 9, "patience": 3, "schedule": "cosine"})
    straight, stopped, continued = world_of(), world_of(), world_of(seed=9)
    continued.teacher = stopped.teacher
    curves = straight.fit(straight.method("kd"), cfg=cfg, validate=stopped_after(9, scores))
    assert curves["epoch"] == [1, 2, 3, 4, 5]
    file = tmp_path / "distill.state"
    with pytest.raises(StoppedError) if stop < 5 else nullcontext():  # after the fifth it is over
        stopped.fit(stopped.method("kd"), cfg=cfg, validate=stopped_after(stop, scores), state_file=file)
    rest = stopped_after(9, scores[stop:])
    resumed = continued.fit(continued.method("kd"), cfg=cfg, validate=rest, state_file=file)
    for name in curves.keys() - {"seconds"}:
        assert resumed[name] == curves[name], name
    assert not moved(snapshot(straight.student.net), snapshot(continued.student.net))


@pytest.mark.parametrize(
    ("settings", "epochs"), [({"epochs": 2}, 2), ({"epochs": 9, "patience": 1}, 2), ({"steps": 4}, 2)]
)
def test_a_finished_phase_is_not_trained_again(settings: dict[str, int], epochs: int, tmp_path: Path) -> None:
    cfg = TrainConfig.model_validate({**QUICK.model_dump(), "epochs": 0, **settings})
    world, again = World.make(), World.make(seed=3)
    validate = stopped_after(9, [0.5] * 9)
    first = world.fit(world.method("ce"), cfg=cfg, validate=validate, state_file=tmp_path / "s")
    assert len(first["epoch"]) == epochs
    again.student.net.register_forward_hook(lambda *_: pytest.fail("it trained"))
    assert again.fit(again.method("ce"), cfg=cfg, validate=validate, state_file=tmp_path / "s") == first
    assert not moved(snapshot(world.student.net), snapshot(again.student.net))


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


SELECTED = {  # by epoch; each is best at another one
    "val_accuracy": (0.9, 0.5, 0.5, 0.5),
    "val_balanced_accuracy": (0.1, 0.6, 0.6, 0.2),
    "val_macro_f1": (0.1, 0.3, 0.6, 0.5),
    "val_loss": (2.0, 1.5, 1.0, 0.5),
}


@pytest.mark.parametrize(
    ("select", "best", "epochs"),
    [("accuracy", 1, 2), ("balanced_accuracy", 3, 4), ("macro_f1", 3, 4), ("loss", 4, 4)],
)
def test_select_decides_which_weights_are_best_and_how_long_patience_lasts(
    select: Select, best: int, epochs: int
) -> None:
    """Of equal values, the one with the lower loss is better."""
    world, weights = World.make(), []
    points = iter(zip(*SELECTED.values(), strict=True))

    def validate(net: nn.Module) -> dict[str, float]:
        weights.append(snapshot(net))
        return dict(zip(SELECTED, next(points), strict=True))

    cfg = QUICK.model_copy(update={"epochs": 4, "patience": 1, "select": select})
    curves = world.fit(world.method("ce"), cfg=cfg, validate=validate)
    assert len(curves["epoch"]) == epochs
    assert not moved(snapshot(world.student.net), weights[best - 1])
