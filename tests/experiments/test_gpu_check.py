"""The GPU check, a few of its steps on the CPU; `python -m experiments.gpu_check --device cpu` runs all."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import gpu_check, gpu_steps
from experiments.gpu_table import tables
from experiments.on_device import Check


@pytest.fixture
def check() -> Check:
    return Check(torch.device("cpu"), least=0.0)


def test_a_step_that_fails_ends_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken() -> Any:
        raise RuntimeError("no such kernel")

    steps = [("broken", 0, broken), ("fine", 0, lambda: {"n": 1}), ("long", 1e9, lambda: {"n": 2})]
    monkeypatch.setattr(gpu_check, "steps", lambda check: iter(steps))
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--out", str(tmp_path / "lines")])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["broken", "fine", "long", "summary"]
    assert "no such kernel" in lines[0]["error"]
    assert lines[1]["figures"] == {"n": 1}
    assert "it needs about" in lines[2]["skipped"]
    assert (lines[3]["failed"], lines[3]["skipped"]) == (["broken"], ["long"])
    assert len((tmp_path / "lines").read_text().splitlines()) == 4


def test_a_method_runs_every_phase_and_goes_on_after_a_stop(check: Check) -> None:
    phases = gpu_steps.method_steps(check, "fitnet", 4, 16)
    assert set(phases["milliseconds"]) == {"hint", "distill"}
    repeated = gpu_steps.repeats(check, "fitnet", 4, 16)
    assert repeated["default"] == {"same seed": "identical", "resumed": "identical"}


def test_speed_is_measured_with_the_settings_of_a_training(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def figures(check: Check, make_step: Any) -> dict[str, float]:
        make_step()
        seen.append(torch.backends.cudnn.benchmark)
        return {"ms": 1.0}

    monkeypatch.setattr(gpu_steps, "step_figures", figures)
    check.peak = dict.fromkeys(("tf32", "bf16"), 1e9)
    settings = list(gpu_steps.SETTINGS)
    found = gpu_steps.speed(check, "kd", ("resnet8", "resnet8"), 4, 16, settings)
    assert list(found) == settings
    assert seen == [False, True, True, True]
    assert all(each["share of peak"] > 0 for each in found.values())


def test_the_tables_hold_the_figures() -> None:
    speed = {"ms": 2.0, "images/s": 500, "share of peak": 0.25, "launches": 7}
    lines: list[dict[str, Any]] = [
        {"name": "facts", "figures": {"device": "a card", "torch": "2", "cuda": "13"}},
        {"name": "speed kd, batch 4", "figures": {"fp32": speed}},
        {"name": "repeat kd", "figures": {"default": {"same seed": "identical", "resumed": "identical"}}},
        {"name": "method aml", "figures": {"waits": {"distill": {"pipeline/methods/aml.py:1 x": 3}}}},
        {"name": "loop, precision fp32", "skipped": "no time"},
    ]
    text = tables(lines)
    assert "| kd, batch 4 | fp32 | 2.0 | 500 | 25.0% | 7 |" in text
    assert "bit-identical for 1 of 1 methods" in text
    assert "| method aml | `pipeline/methods/aml.py:1` | 3 |" in text
