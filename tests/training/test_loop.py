import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from batchless import batchless
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.records import ticker
from pipeline.records.record import Curves
from pipeline.settings import InputError
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import fit, step_of
from pipeline.training.recipe import TeacherTrainConfig, TrainConfig


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


def test_a_log_says_how_far_a_training_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker, "EVERY", 0.0)
    world = World.make(n=16)
    cfg = QUICK.model_copy(update={"epochs": 0, "steps": 3})
    scores = {"val_accuracy": 0.5, "val_loss": 1.0}
    world.fit(world.method("ce"), cfg=cfg, validate=lambda net: scores, label="kd seed 0 distill")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("kd seed 0 distill: epoch 1 of 1.5, validation accuracy 50.0%, ")
    assert last.startswith("kd seed 0 distill: epoch 1.5 of 1.5, ")
    assert re.search(r", [\d,]+ images/s, about 1 s left$", last)


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


def test_precision_changes_the_precision_of_the_networks_and_not_of_the_losses() -> None:
    world, plain = World.make(), World.make()
    half = world.fit(world.method("kd"), cfg=QUICK.model_copy(update={"precision": "bf16"}))
    full = plain.fit(plain.method("kd"))
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.05)


@pytest.mark.parametrize("setting", [{"channels_last": True}, {"precision": "tf32"}])
def test_layout_and_tf32_change_no_more_than_rounding_on_a_cpu(setting: dict[str, Any]) -> None:
    (curves, weights), (plain, plain_weights) = trained(setting), trained({})
    assert curves["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    for name, value in plain_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
        assert weights[name].is_contiguous()


def test_the_networks_compute_channels_last_if_asked() -> None:
    seen: set[tuple[bool, bool]] = set()

    def look(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        last = torch.channels_last
        seen.add((args[0].is_contiguous(memory_format=last), module.weight.is_contiguous(memory_format=last)))

    for asked in (False, True):
        world = World.make(n=8)
        method = world.method("kd")
        for each in (world.student, world.teacher):
            convolutions = [
                m for m in each.net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
            ]
            convolutions[0].register_forward_pre_hook(look)
        seen.clear()
        world.fit(method, cfg=QUICK.model_copy(update={"channels_last": asked}))
        assert all(weight == asked for _, weight in seen)
        assert not asked or seen == {(True, True)}


def test_channels_last_goes_on_after_a_stop_with_the_same_bits(tmp_path: Path) -> None:
    cfg = QUICK.model_copy(update={"channels_last": True, "optimizer": "adamw", "ema": 0.5})
    world, straight = World.make(), World.make()
    with pytest.raises(KeyboardInterrupt):
        world.fit(world.method("kd"), cfg=cfg, state_file=tmp_path / "state", stop=(1, 1))
    world = World.make()
    curves = world.fit(world.method("kd"), cfg=cfg, state_file=tmp_path / "state")
    wanted = straight.fit(straight.method("kd"), cfg=cfg)
    assert curves["loss"] == wanted["loss"]
    assert not moved(snapshot(straight.student.net), snapshot(world.student.net))


def test_deterministic_training_refuses_what_does_not_repeat_and_else_changes_nothing() -> None:
    assert not moved(trained({})[1], trained({"deterministic": True})[1])

    class Unrepeatable(Method[MethodConfig]):
        def terms(self, step: Step) -> Terms:
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
            return {}

    for asked in (False, True):
        world = World.make(n=8)
        method = Unrepeatable(MethodConfig(name="unrepeatable"), world.step(4), torch.zeros(4))
        cfg = QUICK.model_copy(update={"deterministic": asked})
        if asked:
            with pytest.raises(
                InputError, match=r"train\.deterministic is true, but this training needs put_"
            ):
                world.fit(method, cfg=cfg)
        else:
            world.fit(method, cfg=cfg)


class OwnGradients(Method[MethodConfig]):
    """It has no terms, and replaces the gradient of each of the student's parameters."""

    def __init__(self, world: World, gradient: Callable[[Tensor], Tensor]) -> None:
        super().__init__(MethodConfig(name="own"), world.step(4), torch.zeros(4))
        self.gradient = gradient

    def terms(self, step: Step) -> Terms:
        return {}

    def after_backward(self, step: Step, student: Tapped) -> None:
        for parameter in student.net.parameters():
            assert parameter.grad is not None
            parameter.grad = self.gradient(parameter)


def test_the_hook_after_backward_can_change_the_gradients() -> None:
    world = World.make()
    before = {name: p.detach().clone() for name, p in world.student.net.named_parameters()}
    world.fit(OwnGradients(world, torch.zeros_like), cfg=QUICK.model_copy(update={"weight_decay": 0.0}))
    assert all(torch.equal(before[name], p) for name, p in world.student.net.named_parameters())


def scored(accuracies: list[float]) -> Callable[[nn.Module], dict[str, float]]:
    """A validation that gives these accuracies, one after the other."""
    left = iter(accuracies)
    return lambda net: {"val_accuracy": next(left), "val_loss": 0.0}


def trained(
    settings: dict[str, Any], method: str = "kd", phase: int = -1
) -> tuple[Curves, dict[str, Tensor]]:
    """The curves and the weights after a training of three steps an epoch."""
    world = World.make()
    own = world.method(method)
    cfg = TrainConfig.model_validate(QUICK.model_dump() | settings)
    curves = world.fit(own, phase, cfg)
    return {name: column for name, column in curves.items() if name != "seconds"}, snapshot(
        world.student.net, own
    )


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
def test_as_many_steps_as_whole_epochs_have_equal_the_epochs(schedule: str) -> None:
    curves, weights = trained({"schedule": schedule})
    same_curves, same_weights = trained({"schedule": schedule, "epochs": 0, "steps": 6})
    assert same_curves == curves
    assert not moved(weights, same_weights)


def test_steps_end_in_the_middle_of_an_epoch_and_the_schedule_with_them() -> None:
    steps: list[float] = []

    class Counted(Method[MethodConfig]):
        def terms(self, step: Step) -> Terms:
            steps.append(step.progress)
            return {}

    world = World.make()
    cfg = QUICK.model_copy(update={"epochs": 0, "steps": 8, "schedule": "cosine", "points": 2})
    curves = world.fit(Counted(MethodConfig(name="counted"), world.step(4), torch.zeros(4)), cfg=cfg)
    assert steps == pytest.approx([n / 8 for n in range(8)])
    assert curves["epoch"] == pytest.approx([2, 8 / 3])
    assert curves["lr"][0] > 0.001
    assert curves["lr"][1] == pytest.approx(0, abs=1e-9)


def test_smoothed_labels_change_the_cross_entropy_and_nothing_else() -> None:
    frozen = {"epochs": 1, "lr": 1e-30, "weight_decay": 0.0}
    (plain, _), (smooth, _) = trained(frozen), trained(frozen | {"label_smoothing": 0.3})
    assert smooth["kd"] == plain["kd"]
    world = World.make()
    losses = []
    for batch in world.batches(8).epoch(0):
        logits = world.student.net(batch.images)
        targets = 0.7 * nn.functional.one_hot(batch.labels, 3) + 0.1
        losses.append(-(targets * logits.log_softmax(1)).sum(1).mean().item())
    assert smooth["ce"] == pytest.approx([sum(losses) / len(losses)], rel=1e-4)
    assert abs(smooth["ce"][0] - plain["ce"][0]) > 1e-3


def test_smoothed_labels_leave_a_phase_without_labels_alone() -> None:
    plain, smooth = (trained({"label_smoothing": share}, "fitnet", 0) for share in (0.0, 0.3))
    assert smooth[0] == plain[0]
    assert not moved(plain[1], smooth[1])


def test_a_step_gets_all_that_its_batch_holds() -> None:
    world = World.make()
    batch = replace(next(world.batches(8).epoch(0)), targets=torch.eye(3)[torch.arange(8) % 3])
    batch = replace(batch, for_teacher=lambda images, index: images + index.view(-1, 1, 1, 1))
    batch = replace(batch, class_weights=torch.ones(3))
    step = step_of(batch, QUICK, world.student, None, 3, 0.5)
    assert torch.equal(step.teacher_images, batch.images + batch.index.view(-1, 1, 1, 1))
    assert step.targets is batch.targets
    assert step.class_weights is batch.class_weights
    assert (step.index is batch.index, step.epoch, step.progress) == (True, 3, 0.5)


def test_the_gradients_are_clipped_together_after_the_method_changed_them() -> None:
    world = World.make(n=8)
    before = nn.utils.parameters_to_vector(world.student.net.parameters()).detach()
    world.fit(
        OwnGradients(world, lambda parameter: torch.full_like(parameter, 1e6)),
        cfg=TrainConfig(
            steps=1, batch_size=8, optimizer="sgd", schedule="constant", lr=1.0, weight_decay=0, clip=0.3
        ),
    )
    change = nn.utils.parameters_to_vector(world.student.net.parameters()).detach() - before
    assert change.norm().item() == pytest.approx(0.3 * 1.9, rel=1e-3)  # 1 + 0.9: Nesterov's first step
    assert change.std() < 1e-3 * change.abs().mean()


def test_gradients_below_the_clip_stay_as_they_are() -> None:
    assert not moved(trained({"clip": 1e6})[1], trained({})[1])
    assert moved(trained({"clip": 0.01})[1], trained({})[1])


def test_a_phase_ends_when_its_patience_does() -> None:
    world, straight = World.make(n=8), World.make(n=8)
    cfg = QUICK.model_copy(update={"epochs": 9, "patience": 2})
    curves = world.fit(world.method("ce"), cfg=cfg, validate=scored([0.1, 0.2, 0.1, 0.3, 0.3, 0.2, 0.9]))
    assert curves["epoch"] == [1, 2, 3, 4, 5, 6]
    straight.fit(straight.method("ce"), cfg=QUICK.model_copy(update={"epochs": 4}))
    assert not moved(snapshot(straight.student.net), snapshot(world.student.net))


def test_patience_counts_epochs_and_not_points() -> None:
    world = World.make(n=8)
    cfg = QUICK.model_copy(update={"epochs": 20, "patience": 5, "points": 10})
    curves = world.fit(world.method("ce"), cfg=cfg, validate=scored([0.5] + 9 * [0.1]))
    assert curves["epoch"] == [2, 4, 6, 8]


def test_without_validation_patience_never_ends() -> None:
    assert trained({"epochs": 6, "patience": 1})[0]["epoch"] == [1, 2, 3, 4, 5, 6]


def test_what_is_pretrained_moves_by_its_share_and_the_curves_show_the_full_rate() -> None:
    world, plain = World.make(n=8), World.make(n=8)
    loaded = {name for name, _ in world.student.net.named_parameters() if not name.startswith("fc")}
    assert len(loaded) < len(list(world.student.net.parameters()))
    world.student.loaded = frozenset(loaded)
    before = dict(plain.student.net.state_dict(keep_vars=True))
    before = {name: tensor.detach().clone() for name, tensor in before.items()}
    cfg = TrainConfig(steps=1, batch_size=8, optimizer="sgd", schedule="constant", lr=0.01)
    plain.fit(plain.method("ce"), cfg=cfg)
    curves = world.fit(world.method("ce"), cfg=cfg.model_copy(update={"pretrained_lr": 0.25}))
    assert curves["lr"] == [0.01]
    full = dict(plain.student.net.named_parameters())
    for name, parameter in world.student.net.named_parameters():
        share = 0.25 if name in loaded else 1.0
        expected = before[name] + share * (full[name] - before[name])
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-7)


def test_the_curves_show_the_full_rate_where_all_is_pretrained() -> None:
    world = World.make(n=8)
    world.student.loaded = frozenset(name for name, _ in world.student.net.named_parameters())
    curves = world.fit(world.method("ce"), cfg=QUICK.model_copy(update={"pretrained_lr": 0.25}))
    assert curves["lr"] == [0.01, 0.01]


def test_a_phase_of_the_head_leaves_the_body_and_its_statistics_alone() -> None:
    world = World.make(n=8)
    method = world.method("ce")
    (phase,) = method.phases(world.student)
    head = world.student.net.get_submodule(world.student.classifier)
    before = snapshot(world.student.net)
    fit(
        replace(phase, trains=(head,)),
        world.batches(8),
        TeacherTrainConfig(epochs=2, lr=0.1, part="head"),
        student=world.student,
        teacher=None,
        method=method,
        accelerator=Accelerator(cpu=True),
        seed=0,
        validate=scored([0.1, 0.2]),
    )
    of_head = {f"0.{world.student.classifier}.{name}" for name, _ in head.named_parameters()}
    assert moved(before, snapshot(world.student.net)) == of_head
