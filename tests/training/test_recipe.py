import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.training.recipe import TeacherTrainConfig, TrainConfig, merged

SCHEDULES = ["constant", "step", "cosine", "onecycle"]


def rates_of(steps: int, group: int = 0, **settings: Any) -> list[float]:
    """The learning rate of each step, and after the last one."""
    cfg = TrainConfig.model_validate({"optimizer": "sgd", "lr": 0.01, "steps": steps, **settings})
    model = nn.Linear(2, 1)
    built = cfg.build_optimizer(model.parameters(), list(model.parameters())[:1])
    scheduler = cfg.build_scheduler(built, steps)
    rates = [built.param_groups[group]["lr"]]
    for _ in range(steps):
        torch.autograd.backward(model(torch.ones(1, 2)).sum())
        built.step()
        scheduler.step()
        rates.append(built.param_groups[group]["lr"])
    return rates


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_runs_on_every_schedule(optimizer: str, schedule: str) -> None:
    *rates, after = rates_of(16, optimizer=optimizer, schedule=schedule)
    expected: dict[str, Callable[[], bool]] = {
        "constant": lambda: set(rates) == {0.01},
        "step": lambda: (
            [round(math.log10(rate)) for rate in rates] == [-2] * 10 + [-3] * 2 + [-4] * 2 + [-5] * 2
        ),
        "cosine": lambda: (
            rates[0] == 0.01 and after == pytest.approx(0, abs=1e-9) and rates == sorted(rates, reverse=True)
        ),
        "onecycle": lambda: (
            max(rates) == pytest.approx(0.01, rel=0.05) and rates[0] < 0.001 and rates[-1] < 1e-4
        ),
    }
    assert expected[schedule](), rates


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warmup_rises_in_a_line_and_then_the_schedule_has_the_other_steps(schedule: str) -> None:
    rates = rates_of(40, schedule=schedule, warmup=0.2)
    assert rates[:8] == pytest.approx([0.01 * n / 9 for n in range(1, 9)])
    assert rates[8:] == pytest.approx(rates_of(32, schedule=schedule))


@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize("group", [0, 1])
def test_the_cosine_may_end_at_a_floor_above_0(warmup: float, group: int) -> None:
    full, raised = (
        rates_of(40, group, schedule="cosine", warmup=warmup, floor=floor, pretrained_lr=0.5)
        for floor in (0.0, 0.1)
    )
    highest, first = 0.01 * (0.5 if group else 1), 10 if warmup else 0
    assert raised[:first] == pytest.approx(full[:first])
    expected = [0.1 * highest + 0.9 * rate for rate in full[first:]]
    assert raised[first:] == pytest.approx(expected)
    assert raised[-1] == pytest.approx(0.1 * highest)


def test_a_factor_multiplies_the_rate_of_its_parameters() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    factors = {id(parameter): 10 for parameter in net[1].parameters()}
    groups = TrainConfig(lr=0.5).build_optimizer(net.parameters(), net[1:].parameters(), factors).param_groups
    assert [(g["lr"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.5, [(3, 2), (3,)]),
        (5.0, [(2, 3), (2,)]),
    ]


def test_a_warmup_does_not_move_the_milestones() -> None:
    warm, cold = (rates_of(40, schedule="step", warmup=share) for share in (0.2, 0.0))
    assert warm[0] < warm[7] < 0.01
    assert warm[8:] == pytest.approx(cold[8:])


def test_the_warmup_of_onecycle_is_the_part_in_which_it_rises() -> None:
    rates = rates_of(40, schedule="onecycle", warmup=0.5)
    assert rates.index(max(rates)) == 19
    assert rates_of(40, schedule="onecycle", warmup=0.3) == rates_of(40, schedule="onecycle")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.01, 0.1, 0.25, 0.5, 0.6])
def test_any_warmup_fits_any_number_of_steps(schedule: str, warmup: float) -> None:
    for steps in (1, 2, 3, 4, 10):
        rates = rates_of(steps, schedule=schedule, warmup=warmup)[:-1]
        assert 0 < max(rates) <= 0.01
        assert min(rates) > 0


def test_decay_of_weights_leaves_norms_and_biases_alone() -> None:
    for decay, shrunk in (("all", {"0.weight", "0.bias", "1.weight"}), ("weights", {"0.weight"})):
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        nn.init.ones_(net.get_parameter("0.bias"))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        cfg = TrainConfig.model_validate({"optimizer": "adamw", "weight_decay": 0.5, "decay": decay})
        optimizer = cfg.build_optimizer(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert {name for name, p in net.named_parameters() if not torch.equal(p, before[name])} == shrunk


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_what_was_pretrained_has_its_share_of_the_rate_at_every_step(schedule: str, warmup: float) -> None:
    settings = {"schedule": schedule, "warmup": warmup, "pretrained_lr": 0.1}
    full, lower = (rates_of(20, group, **settings) for group in (0, 1))
    assert lower == pytest.approx([0.1 * rate for rate in full])
    assert full == rates_of(20, schedule=schedule, warmup=warmup)


def test_parameters_are_grouped_by_rate_and_decay_and_the_first_group_has_the_full_rate() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    cfg = TrainConfig(lr=0.5, pretrained_lr=0.1, weight_decay=0.2, decay="weights")
    groups = cfg.build_optimizer(net.parameters(), net[0].parameters()).param_groups
    found = [(g["lr"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups]
    assert found == [
        (0.5, 0.2, [(2, 3)]),
        (0.05, 0.2, [(3, 2)]),
        (0.05, 0.0, [(3,)]),
        (0.5, 0.0, [(2,)]),
    ]
    everything = cfg.build_optimizer(net.parameters(), net.parameters()).param_groups
    assert (everything[0]["lr"], everything[0]["params"]) == (0.5, [])
    assert len(TrainConfig().build_optimizer(net.parameters(), net.parameters()).param_groups) == 1


def test_epochs_or_steps_say_how_long() -> None:
    assert TrainConfig().total_steps(7) == 700
    assert TrainConfig(epochs=3).total_steps(7) == 21
    assert TrainConfig(steps=5).total_steps(7) == 5
    assert TrainConfig(epochs=3, steps=0).total_steps(7) == 21
    assert TrainConfig(epochs=0, steps=5).total_steps(7) == 5


@pytest.mark.parametrize("common", [{"epochs": 80}, {"steps": 500}])
def test_a_phases_own_length_replaces_the_common_one(common: dict[str, int]) -> None:
    train = TrainConfig(**common, batch_size=32)
    for own, steps in (({"epochs": 3}, 21), ({"steps": 5}, 5), ({}, train.total_steps(7))):
        cfg = TrainConfig.model_validate(merged(train, {**own, "lr": 0.5}))
        assert (cfg.total_steps(7), cfg.lr, cfg.batch_size) == (steps, 0.5, 32)
    with pytest.raises(ValidationError, match="epochs is 3 and steps is 5, but only one"):
        TrainConfig.model_validate(merged(train, {"epochs": 3, "steps": 5}))


@pytest.mark.parametrize("given", [{"epochs": 0}, {"epochs": 0, "steps": 0}])
def test_a_teacher_may_be_taken_as_it_is(given: dict[str, int]) -> None:
    cfg = TeacherTrainConfig(**given)
    assert not cfg.is_trained
    assert TeacherTrainConfig.model_validate(cfg.model_dump()) == cfg


@pytest.mark.parametrize("given", [{}, {"epochs": 2}, {"steps": 2}, {"epochs": 0, "steps": 2}])
def test_a_teacher_with_a_length_is_trained(given: dict[str, int]) -> None:
    cfg = TeacherTrainConfig(**given)
    assert cfg.is_trained
    assert (cfg.part, cfg.total_steps(1)) == ("all", 2 if given else 100)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs is 0, so nothing is trained. Set epochs or steps to 1 or more"),
        ({"steps": 0, "epochs": 0}, "epochs is 0, so nothing is trained"),
        ({"epochs": 80, "steps": 500}, "epochs is 80 and steps is 500, but only one of them says how long"),
        ({"steps": -1}, r"steps\n.*greater than or equal to 0"),
        ({"warmup": 1.0}, r"warmup\n.*less than 1"),
        ({"warmup": -0.1}, r"warmup\n.*greater than or equal to 0"),
        ({"schedule": "step", "warmup": 0.7}, r"warmup is 0\.7, but the rate falls before that, at 0\.625"),
        ({"floor": 1.0}, r"floor\n.*less than 1"),
        ({"floor": 0.1, "schedule": "step"}, r"floor is 0\.1, but schedule step has none\. Set schedule to"),
        ({"label_smoothing": 1.0}, r"label_smoothing\n.*less than 1"),
        ({"clip": -1.0}, r"clip\n.*greater than or equal to 0"),
        ({"decay": "norms"}, r"decay\n.*'all' or 'weights'"),
        ({"class_balance": "oversample"}, r"class_balance\n.*'none', 'sampler' or 'weights'"),
        ({"select": "f1"}, r"select\n.*'accuracy', 'balanced_accuracy', 'macro_f1' or 'loss'"),
        ({"patience": -1}, r"patience\n.*greater than or equal to 0"),
        ({"pretrained_lr": 0.0}, r"pretrained_lr\n.*greater than 0"),
        ({"pretrained_lr": 10.0}, r"pretrained_lr\n.*less than or equal to 1"),
        ({"part": "body"}, r"part\n.*'all' or 'head'"),
    ],
)
def test_bad_values_are_refused(given: dict[str, Any], message: str) -> None:
    model = TeacherTrainConfig if "part" in given else TrainConfig
    with pytest.raises(ValidationError, match=message):
        model.model_validate(given)
