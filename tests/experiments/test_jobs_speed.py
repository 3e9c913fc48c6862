import pytest

from experiments import jobs_speed
from experiments.jobs_speed import BASE, OTHERS, main, table


def test_ratios_are_those_of_a_round() -> None:
    text = table({BASE: [100.0, 120.0, 90.0], OTHERS[0]: [50.0, 100.0, 60.0]}, epochs=7)
    assert "4 runs (resnet14 -> resnet8, digits, 7 epochs)" in text
    assert "| 1 at a time, 1 thread each | 100.0 [90.0, 120.0] | 1.00 [1.00, 1.00] | 3 |\n" in text
    assert "| 1 at a time, 2 threads each | 60.0 [50.0, 100.0] | 1.50 [1.20, 2.00] | 3 |\n" in text


@pytest.mark.slow
def test_every_way_trains_all_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(jobs_speed, "METHODS", {"alone": {"name": "ce"}, "kd": {"name": "kd"}})
    main(["--epochs", "1", "--rounds", "1"])
    printed = capfd.readouterr().out
    assert printed.count("Running stage 'distill@kd'") == 3
    assert "kd    | Running stage 'distill@kd'" in printed
    assert "| 2 at a time, 1 thread each | " in printed
