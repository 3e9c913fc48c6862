import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from world import QUICK, World, moved, snapshot

from pipeline import train
from pipeline.meters import gradient_shares, say_once
from pipeline.methods.base import Method, MethodConfig, Terms
from pipeline.taps import Step, Tapped
from pipeline.train import TrainConfig, looked_at

ROOT = Path(__file__).parents[1]


def test_it_learns() -> None:
    world = World.make(n=48)
    curves = world.fit(world.method("ce"), cfg=TrainConfig(epochs=12, batch_size=16, lr=0.01))
    assert curves["loss"][-1] < 0.5 * curves["loss"][0]


def test_curves_have_a_value_a_point_and_the_means_of_an_epoch() -> None:
    world = World.make(n=16)
    frozen = TrainConfig(epochs=3, batch_size=8, lr=1e-30, optimizer="sgd", schedule="constant")
    curves = world.fit(world.method("kd"), cfg=frozen, batches=world.batches(8, augment=None))
    assert {len(column) for column in curves.values()} == {3}
    assert curves["epoch"] == [1, 2, 3]
    assert curves["loss"] == pytest.approx([0.1 * ce + 0.9 * kd for ce, kd in zip(curves["ce"], curves["kd"], strict=True)])


def test_points_are_bounded_and_the_last_epoch_is_one() -> None:
    world = World.make(n=8)
    curves = world.fit(world.method("ce"), cfg=QUICK.model_copy(update={"epochs": 7, "points": 3}))
    assert curves["epoch"] == [3, 6, 7]


def test_the_best_student_on_validation_is_kept() -> None:
    world = World.make(n=8)
    scores = iter([0.2, 0.9, 0.9, 0.5])
    seen: list[dict] = []

    def validate(net: nn.Module) -> dict[str, float]:
        seen.append(snapshot(net))
        return {"val_accuracy": next(scores), "val_loss": 1.0 if len(seen) < 3 else 0.5}

    curves = world.fit(world.method("ce"), cfg=QUICK.model_copy(update={"epochs": 4}), validate=validate)
    assert curves["val_accuracy"] == [0.2, 0.9, 0.9, 0.5]
    assert not moved(seen[2], snapshot(world.student.net))  # of two equal accuracies the lower loss
    assert moved(seen[1], seen[2])


def test_without_validation_the_last_student_is_kept() -> None:
    one, two = World.make(n=8), World.make(n=8)
    one.fit(one.method("ce"), cfg=QUICK.model_copy(update={"epochs": 1}))
    two.fit(two.method("ce"), cfg=QUICK.model_copy(update={"epochs": 2}))
    assert moved(snapshot(one.student.net), snapshot(two.student.net))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
def test_every_optimiser_runs_on_every_schedule(optimizer: str, schedule: str) -> None:
    cfg = TrainConfig.model_validate({"epochs": 4, "batch_size": 8, "optimizer": optimizer, "schedule": schedule, "lr": 0.01})
    model = nn.Linear(2, 1)
    optimiser = cfg.optimiser(model.parameters())
    scheduler = cfg.scheduler(optimiser, steps_per_epoch=4)
    rates = []
    for _ in range(16):
        rates.append(optimiser.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimiser.step()
        scheduler.step()
    after = optimiser.param_groups[0]["lr"]
    expected: dict[str, Callable[[], bool]] = {
        "constant": lambda: set(rates) == {0.01},
        "step": lambda: [round(math.log10(rate)) for rate in rates] == [-2] * 10 + [-3] * 2 + [-4] * 2 + [-5] * 2,
        "cosine": lambda: rates[0] == 0.01 and after == pytest.approx(0, abs=1e-9) and rates == sorted(rates, reverse=True),
        "onecycle": lambda: max(rates) == pytest.approx(0.01, rel=0.05) and rates[0] < 0.001 and rates[-1] < 1e-4,
    }
    assert expected[schedule](), rates


class Batchless(nn.Module):
    """No batch norm: what a batch does to it is the mean of what its images do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def batchless(world: World) -> World:
    torch.manual_seed(0)
    world.student = Tapped(Batchless(), world.step(2).images)
    return world


def test_accumulating_parts_equals_the_whole_batch() -> None:
    whole, parts = batchless(World.make()), batchless(World.make())
    whole.fit(whole.method("kd"))
    parts.fit(parts.method("kd"), cfg=QUICK.model_copy(update={"accumulate": 3}))
    for name, tensor in whole.student.net.state_dict().items():
        torch.testing.assert_close(parts.student.net.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("extra", [{}, {"ema": 0.5}, {"optimizer": "adamw", "schedule": "onecycle"}], ids=["sgd", "ema", "onecycle"])
def test_a_stopped_phase_goes_on_to_the_same_weights(extra: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    cfg = TrainConfig.model_validate({**QUICK.model_dump(), "epochs": 5, **extra})
    straight = World.make()
    curves = straight.fit(straight.method("kd"), cfg=cfg)

    class StoppedError(Exception):
        pass

    stopped, calls = World.make(), 0

    def stop(net: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StoppedError
        return {}

    file = tmp_path / "distill.state"
    with pytest.raises(StoppedError):
        stopped.fit(
            stopped.method("kd"), cfg=cfg, validate=lambda net: stop(net) | {"val_accuracy": calls, "val_loss": 0.0}, state_file=file
        )
    went_on = World.make(seed=9)  # another start: everything must come from the file
    went_on.teacher = stopped.teacher
    resumed = went_on.fit(went_on.method("kd"), cfg=cfg, state_file=file)
    assert resumed["loss"] == curves["loss"]
    assert not moved(snapshot(straight.student.net), snapshot(went_on.student.net))


def test_a_finished_phase_isn_t_trained_again(tmp_path: Path) -> None:
    world = World.make()
    first = world.fit(world.method("ce"), state_file=tmp_path / "s")
    weights = snapshot(world.student.net)
    again = World.make(seed=3)
    again.student.net.register_forward_hook(lambda *_: pytest.fail("it trained"))
    assert again.fit(again.method("ce"), state_file=tmp_path / "s") == first
    assert not moved(weights, snapshot(again.student.net))


def test_a_torn_state_file_is_said_and_left_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, other = World.make(), World.make()
    world.fit(world.method("ce"), state_file=tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(content[: len(content) // 2])
    other.fit(other.method("ce"), state_file=tmp_path / "s")
    assert "starting this phase again" in capsys.readouterr().out
    assert not moved(snapshot(world.student.net), snapshot(other.student.net))


class Broken(Method):
    def terms(self, step: Step) -> Terms:
        return {"tidy": step.student.logits.square().mean(), "wild": step.student.logits.sum() * (math.nan if step.epoch == 1 else 1.0)}


def test_a_nan_names_the_term_and_the_step() -> None:
    world = World.make()
    method = Broken(MethodConfig(name="broken"), world.step(4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"Phase distill, epoch 1, step 0: the term 'wild' is nan.*train\.lr"):
        world.fit(method)


def test_a_loss_without_terms_is_refused() -> None:
    world = World.make(n=8)
    with pytest.raises(ValueError, match=r"Phase distill has nothing to learn from: raise method\.ce_weight"):
        world.fit(world.method("kd", ce_weight=0.0, kd_weight=0.0))


def test_shares_are_each_term_s_part_of_the_student_s_gradient() -> None:
    world = World.make()
    loss = world.method("kd", ce_weight=0.3).loss(world.step())
    norms = {}
    for name, (value, weight) in loss.items():
        world.student.net.zero_grad()
        (weight * value).backward(retain_graph=True)
        norms[name] = sum(float(p.grad.square().sum()) for p in world.student.net.parameters() if p.grad is not None) ** 0.5
    shares = gradient_shares(loss, world.student.net)
    assert shares == pytest.approx({name: norm / sum(norms.values()) for name, norm in norms.items()}, rel=1e-5)


def test_a_term_that_drowns_the_others_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    say_once.cache_clear()
    for _seed in range(2):
        world = World.make()
        curves = world.fit(world.method("kd", ce_weight=1e-6), cfg=QUICK.model_copy(update={"epochs": 3}))
    said = capsys.readouterr().out
    assert said.count("the term 'kd' drowns the others") == 1
    assert said.count("the term 'ce' is drowned by the others") == 1
    assert [round(kd + ce, 6) for kd, ce in zip(curves["share of kd"], curves["share of ce"], strict=True)] == [1, 1, 1]


def test_terms_are_looked_at_often_at_first_and_then_seldom() -> None:
    assert [step for step in range(700) if looked_at(step)] == [0, 50, 100, 150, 200, 400, 600]


def test_a_term_that_comes_and_goes_has_a_full_column() -> None:
    class Guest(Method):
        def terms(self, step: Step) -> Terms:
            return {"guest": step.student.logits.square().mean()} if step.epoch == 1 else {}

    world = World.make(n=8)
    method = Guest(MethodConfig(name="guest"), world.step(4), torch.zeros(4))
    curves = world.fit(method, cfg=QUICK.model_copy(update={"epochs": 3}))
    assert {len(column) for column in curves.values()} == {3}
    assert [value > 0 for value in curves["guest"]] == [False, True, False]


def test_ema_weights_are_the_mean_they_say() -> None:
    world = World.make(n=8)
    plain = World.make(n=8)
    cfg = TrainConfig(epochs=2, batch_size=8, lr=0.01, optimizer="sgd", schedule="constant")
    history: list[dict] = []

    def validate(net: nn.Module) -> dict[str, float]:
        history.append(snapshot(net))
        return {"val_accuracy": len(history), "val_loss": 0}

    plain.fit(plain.method("ce"), cfg=cfg, validate=validate)
    world.fit(world.method("ce"), cfg=cfg.model_copy(update={"ema": 0.75}))
    key = next(name for name in history[0] if name.endswith("weight"))
    expected = 0.75 * history[0][key] + 0.25 * history[1][key]
    torch.testing.assert_close(snapshot(world.student.net)[key], expected)


def test_amp_trains_in_another_precision_and_keeps_the_losses_in_float32() -> None:
    world, plain = World.make(), World.make()
    half = world.fit(world.method("kd"), cfg=QUICK.model_copy(update={"amp": "bf16"}))
    full = plain.fit(plain.method("kd"))
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.05)


def test_the_hook_after_backward_sees_gradients_and_can_reshape_them() -> None:
    class Still(Method):
        def terms(self, step: Step) -> Terms:
            return {}

        def after_backward(self, step: Step, student: Tapped) -> None:
            for parameter in student.net.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()

    world = World.make()
    before = {name: p.detach().clone() for name, p in world.student.net.named_parameters()}
    world.fit(Still(MethodConfig(name="still"), world.step(4), torch.zeros(4)), cfg=QUICK.model_copy(update={"weight_decay": 0.0}))
    assert all(torch.equal(before[name], p) for name, p in world.student.net.named_parameters())


TWO = """
import sys, torch
from accelerate import Accelerator
from test_train import batchless
from world import World
accelerator = Accelerator(cpu=True)
world = batchless(World.make())
batches = world.batches(8, shard=(accelerator.process_index, accelerator.num_processes))
assert accelerator.num_processes == int(sys.argv[2])
world.fit(world.method("kd"), batches=batches, accelerator=accelerator)
if accelerator.is_main_process:
    torch.save(world.student.net.state_dict(), sys.argv[1])
if accelerator.num_processes > 1:
    torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    for n in (1, 2):
        launcher = [sys.executable] if n == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launcher, str(tmp_path / "two.py"), str(tmp_path / f"{n}.pt"), str(n)]
        done = subprocess.run(
            command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-7)
