import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batchless import batchless
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.taps import Step, Tapped
from pipeline.training.recipe import TrainConfig

ROOT = Path(__file__).parents[2]


def test_training_lowers_the_loss() -> None:
    world = World.make(n=48)
    curves = world.fit(world.method("ce"), cfg=TrainConfig(epochs=12, batch_size=16, lr=0.01))
    assert curves["loss"][-1] < 0.5 * curves["loss"][0]


def test_curves_have_a_value_for_each_point_and_hold_the_means_of_an_epoch() -> None:
    world = World.make(n=16)
    frozen = TrainConfig(epochs=3, batch_size=8, lr=1e-30, optimizer="sgd", schedule="constant")
    curves = world.fit(world.method("kd"), cfg=frozen, batches=world.batches(8, augment=None))
    assert {len(column) for column in curves.values()} == {3}
    assert curves["epoch"] == [1, 2, 3]
    assert curves["loss"] == pytest.approx(
        [0.1 * ce + 0.9 * kd for ce, kd in zip(curves["ce"], curves["kd"], strict=True)]
    )


def test_the_number_of_points_is_limited_and_the_last_epoch_is_one() -> None:
    world = World.make(n=8)
    curves = world.fit(world.method("ce"), cfg=QUICK.model_copy(update={"epochs": 7, "points": 3}))
    assert curves["epoch"] == [3, 6, 7]


def test_the_student_ends_with_its_best_weights_on_validation() -> None:
    world = World.make(n=8)
    scores = iter([0.2, 0.9, 0.9, 0.5])
    seen: list[dict[str, Tensor]] = []

    def validate(net: nn.Module) -> dict[str, float]:
        seen.append(snapshot(net))
        return {"val_accuracy": next(scores), "val_loss": 1.0 if len(seen) < 3 else 0.5}

    curves = world.fit(world.method("ce"), cfg=QUICK.model_copy(update={"epochs": 4}), validate=validate)
    assert curves["val_accuracy"] == [0.2, 0.9, 0.9, 0.5]
    assert not moved(seen[2], snapshot(world.student.net))  # of two equal accuracies the lower loss
    assert moved(seen[1], seen[2])


def test_without_validation_the_student_ends_with_its_last_weights() -> None:
    one, two = World.make(n=8), World.make(n=8)
    one.fit(one.method("ce"), cfg=QUICK.model_copy(update={"epochs": 1}))
    two.fit(two.method("ce"), cfg=QUICK.model_copy(update={"epochs": 2}))
    assert moved(snapshot(one.student.net), snapshot(two.student.net))


def test_accumulating_parts_equals_the_whole_batch() -> None:
    whole, parts = batchless(World.make()), batchless(World.make())
    whole.fit(whole.method("kd"))
    parts.fit(parts.method("kd"), cfg=QUICK.model_copy(update={"accumulate": 3}))
    for name, tensor in whole.student.net.state_dict().items():
        torch.testing.assert_close(parts.student.net.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_loss_without_terms_is_refused() -> None:
    world = World.make(n=8)
    with pytest.raises(
        ValueError, match=r"Phase distill has nothing to learn from\. Raise method\.ce_weight"
    ):
        world.fit(world.method("kd", ce_weight=0.0, kd_weight=0.0))


def test_ema_weights_are_the_moving_average() -> None:
    world = World.make(n=8)
    plain = World.make(n=8)
    cfg = TrainConfig(epochs=2, batch_size=8, lr=0.01, optimizer="sgd", schedule="constant")
    history: list[dict[str, Tensor]] = []

    def validate(net: nn.Module) -> dict[str, float]:
        history.append(snapshot(net))
        return {"val_accuracy": len(history), "val_loss": 0}

    plain.fit(plain.method("ce"), cfg=cfg, validate=validate)
    world.fit(world.method("ce"), cfg=cfg.model_copy(update={"ema": 0.75}))
    key = next(name for name in history[0] if name.endswith("weight"))
    expected = 0.75 * history[0][key] + 0.25 * history[1][key]
    torch.testing.assert_close(snapshot(world.student.net)[key], expected)


def test_amp_changes_the_precision_of_the_networks_and_not_of_the_losses() -> None:
    world, plain = World.make(), World.make()
    half = world.fit(world.method("kd"), cfg=QUICK.model_copy(update={"amp": "bf16"}))
    full = plain.fit(plain.method("kd"))
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.05)


def test_the_hook_after_backward_can_change_the_gradients() -> None:
    class Still(Method[MethodConfig]):
        def terms(self, step: Step) -> Terms:
            return {}

        def after_backward(self, step: Step, student: Tapped) -> None:
            for parameter in student.net.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()

    world = World.make()
    before = {name: p.detach().clone() for name, p in world.student.net.named_parameters()}
    world.fit(
        Still(MethodConfig(name="still"), world.step(4), torch.zeros(4)),
        cfg=QUICK.model_copy(update={"weight_decay": 0.0}),
    )
    assert all(torch.equal(before[name], p) for name, p in world.student.net.named_parameters())


TWO = """
import sys, torch
from accelerate import Accelerator
from batchless import batchless
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
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for n, options in ((1, []), (2, launcher)):
        command = [sys.executable, *options, str(tmp_path / "two.py"), str(tmp_path / f"{n}.pt"), str(n)]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-7)
