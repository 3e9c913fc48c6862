import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.training.recipe import TrainConfig


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
def test_every_optimizer_runs_on_every_schedule(optimizer: str, schedule: str) -> None:
    cfg = TrainConfig.model_validate(
        {"epochs": 4, "batch_size": 8, "optimizer": optimizer, "schedule": schedule, "lr": 0.01}
    )
    model = nn.Linear(2, 1)
    built = cfg.build_optimizer(model.parameters())
    scheduler = cfg.build_scheduler(built, steps_per_epoch=4)
    rates: list[float] = []
    for _ in range(16):
        rates.append(built.param_groups[0]["lr"])
        torch.autograd.backward(model(torch.ones(1, 2)).sum())
        built.step()
        scheduler.step()
    after = built.param_groups[0]["lr"]
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
