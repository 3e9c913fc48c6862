"""A phase that is stopped and continued."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from world import QUICK, World, moved, snapshot

from pipeline.checkpoint import load_state, save_state
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batches
from pipeline.project.dependencies import ROOT
from pipeline.records import ticker
from pipeline.records.selection import Select
from pipeline.training import state, stop
from pipeline.training.recipe import TrainConfig
from pipeline.training.stop import Stop


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


def always_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is saved after every step."""
    monkeypatch.setattr(state, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(state, "SAVE_SHARE", math.inf)


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
        {"accumulate": 2, "points": 2},
        {"class_balance": "sampler"},
    ],
    ids=lambda extra: ",".join(map(str, extra.values())) or "sgd",
)
def test_a_phase_that_is_stopped_at_any_step_continues_to_the_same_weights(
    extra: dict[str, Any], tmp_path: Path
) -> None:
    """It is stopped at its first step, inside an epoch, and at the last step of an epoch."""
    cfg = TrainConfig.model_validate({**QUICK.model_dump(), "epochs": 5, **extra})

    def batches(world: World) -> Batches:
        return world.batches(
            cfg.batch_size,
            augment=AugmentConfig(pad=1, flip=0.5, mixup=0.4),
            class_balance=cfg.class_balance,
        )

    straight, file = world_of(), tmp_path / "distill.state"
    curves = straight.fit(straight.method("kd"), cfg=cfg, batches=batches(straight))
    for seed, place in enumerate([(0, 0), (2, 1), (3, 2), None]):
        world = world_of(seed)  # another start each time: everything must come from the file
        world.teacher = straight.teacher
        options: dict[str, Any] = {"cfg": cfg, "batches": batches(world), "stop": place, "state_file": file}
        if place:
            with pytest.raises(KeyboardInterrupt):
                world.fit(world.method("kd"), **options)
        else:
            resumed = world.fit(world.method("kd"), **options)
    for name in curves.keys() - {"seconds"}:
        assert resumed[name] == curves[name], name
    assert not moved(snapshot(straight.student.net), snapshot(world.student.net))


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_stopped_phase_ends_with_the_same_patience(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_saved(monkeypatch)
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


@pytest.mark.parametrize(("every", "share", "saves"), [(20.0, 0.02, 1), (0.0, 1.0, 3), (0.0, 0.1, 2)])
def test_the_state_is_saved_now_and_then_and_for_a_small_share_of_the_time(
    every: float, share: float, saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second, a save two: saved after step 1, 4 and 7; with a share of 0.1 after step 1 only.
    And at the end of each phase."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(state, "SAVE_EVERY", every)
    monkeypatch.setattr(state, "SAVE_SHARE", share)
    made = []

    def save(file: Path, content: dict[str, Any]) -> None:
        clock[0] += 2.0
        made.append((content["epoch"], content["step"]))

    monkeypatch.setattr(state, "save_state", save)
    world = World.make()
    world.student.net.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1.0))
    cfg = QUICK.model_copy(update={"epochs": 3})
    world.fit(world.method("ce"), cfg=cfg, state_file=tmp_path / "s")
    expected = {1: [(3, 0)], 3: [(0, 1), (1, 1), (2, 1), (3, 0)], 2: [(0, 1), (3, 0)]}
    assert made == expected[saves]


def test_the_state_is_due_every_twenty_seconds_for_two_percent_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As docs/reliability.md promises."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    due = dict[float, bool]()
    for took, after in ((0.0, 19.0), (0.0, 21.0), (0.3, 21.0), (1.0, 49.0), (1.0, 51.0)):
        saved = state.State.__new__(state.State)
        saved.last_save, saved.save_seconds = 1000.0, took
        clock[0] = 1000.0 + after
        due[took + after] = saved.is_due()
    assert due == {19.0: False, 21.0: True, 21.3: True, 50.0: False, 52.0: True}


def test_the_seconds_and_the_place_go_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, places = tmp_path / "s", []
    cfg = QUICK.model_copy(update={"epochs": 3})
    made = ticker.Ticker.__init__

    def noted(self: ticker.Ticker, *args: Any, **options: Any) -> None:
        places.append(options["done"])
        made(self, *args, **options)

    monkeypatch.setattr(ticker.Ticker, "__init__", noted)
    with pytest.raises(KeyboardInterrupt):
        World.make().fit(World.make().method("ce"), cfg=cfg, stop=(1, 1), state_file=file)
    saved = load_state(file)
    assert saved is not None
    save_state(file, saved | {"seconds": saved["seconds"] + 1000.0})
    curves = World.make().fit(World.make().method("ce"), cfg=cfg, state_file=file)
    assert curves["seconds"][0] < 1000 < curves["seconds"][1] < curves["seconds"][2] < 2000
    assert places == [0, 5]


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_is_heeded_at_the_end_at_the_latest(number: signal.Signals) -> None:
    usual = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised, Stop() as heeded:
        signal.raise_signal(number)
        assert heeded.asked == number
    assert raised.value.args == (number,)
    assert signal.getsignal(number) == usual


def test_a_second_signal_ends_a_training_at_once_but_not_that_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(KeyboardInterrupt, match="15"), Stop():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        monkeypatch.setattr(stop, "AGAIN", 0.0)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")


TWO = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from pipeline.checkpoint import load_state
from world import QUICK, World, moved, snapshot
accelerator, file = Accelerator(cpu=True), Path(sys.argv[1])
rank, cfg = accelerator.process_index, QUICK.model_copy(update={"epochs": 9})

def train(seed, **options):
    world = World.make(seed=seed)
    world.teacher = World.make().teacher
    shard = (rank, accelerator.num_processes)
    method = world.method("crd")
    batches = world.batches(8, shard=shard)
    try:
        curves = world.fit(method, cfg=cfg, batches=batches, accelerator=accelerator, **options)
    except KeyboardInterrupt:
        return load_state(file), None
    return {key: curves[key] for key in curves if key != "seconds"}, snapshot(world.student.net, method)

curves, weights = train(0)
saved, nothing = train(0, state_file=file, **({"stop": (1, 1)} if rank else {}))
again, same = train(9, state_file=file)
assert nothing is None and 3 < 3 * saved["epoch"] + saved["step"] < 27, (saved["epoch"], saved["step"])
assert not moved(weights, same), moved(weights, same)
assert again == curves
print(f"equal after {saved['epoch']}.{saved['step']};", end="", flush=True)
torch.distributed.destroy_process_group()
"""


def test_a_signal_to_one_of_two_processes_stops_both_and_they_go_on_alike(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, tmp_path / "two.py", tmp_path / "state"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal after") == 2


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
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (content[:middle], changed, content[:-1], b""):
        (tmp_path / "s").write_bytes(damaged)
        assert load_state(tmp_path / "s") is None
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
