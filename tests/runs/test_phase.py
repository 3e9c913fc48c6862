"""The line that is printed after a phase (pipeline/runs/phase.py) tells how far its training went."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from world import QUICK, World

from pipeline.runs.phase import Trainee, train_phase
from pipeline.training.recipe import TrainConfig


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"epochs": 1}, "kd distill: 1 epoch on 22 images"),
        ({"epochs": 2}, "kd distill: 2 epochs on 22 images"),
        ({"epochs": 9, "patience": 2}, "kd distill: 3 of 9 epochs on 22 images"),
        ({"epochs": 0, "steps": 7}, "kd distill: 2.33 epochs on 22 images"),
        ({"epochs": 0, "steps": 13, "patience": 2}, "kd distill: 3 of 4.33 epochs on 22 images"),
    ],
)
def test_it_tells_the_epochs_that_were_trained(
    settings: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World.make()
    method = world.method("ce")
    context: Any = SimpleNamespace(
        batches=lambda cfg, *_, **__: world.batches(cfg.batch_size),
        accelerator=Accelerator(cpu=True),
        is_main=True,
    )
    train_phase(
        context,
        Trainee(0, world.student, None, method),
        method.phases(world.student)[0],
        TrainConfig.model_validate(QUICK.model_dump() | settings),
        validate=lambda net: {"val_accuracy": 0.5, "val_loss": 1.0},
        folder=tmp_path,
        stage=tmp_path,
        curve="distill",
        label="kd distill",
        on_point=lambda name, curves: None,
    )
    assert line in capsys.readouterr().out
