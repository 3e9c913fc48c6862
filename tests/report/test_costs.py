from pathlib import Path

import pytest
from fabricated import NAMES, edit, learn

from pipeline.records.results import load_results
from pipeline.report import costs


def count(records: Path, stage: str, name: str, *, complete: bool, **joules: float) -> None:
    """Let the record have the energy of these parts, as `recording` writes it."""
    file = records / stage / f"{name}.json"
    edit(file, details={"subset": {"images": 20}, "energy_j": joules})
    if complete:
        edit(file, metrics={"val_accuracy": 0.79, "energy_j": sum(joules.values())})


def lines(records: Path) -> dict[str, str]:
    found = costs.training_costs(load_results(records, **NAMES))
    return {cost.name: " | ".join(costs.cells(cost)) for cost in found} | {"note": costs.note(found)}


def test_times_and_rates_are_those_of_the_records(records: Path) -> None:
    table = lines(records)
    # the teacher saw 40 images in 2 epochs of 8 s, and fitnet 20 images in 2 and 3 epochs of 2 and 3 s
    assert table["big"] == "1.5 | 10 |  | cpu"
    assert table["fitnet"] == "3.0 | 20 |  | cpu"
    assert "Here it did not." in table["note"]


def test_knowledge_is_listed_once_after_the_teachers(records: Path) -> None:
    learn(records, "atoms", "kd", "fitnet")
    found = costs.training_costs(load_results(records, **NAMES))
    assert [cost.name for cost in found] == ["big", "atoms (knowledge)", "fitnet", "kd", "alone"]
    assert found[1].images_per_s == pytest.approx(20 * 2 / 60)


def test_energy_is_shown_where_it_was_counted(records: Path) -> None:
    for stage in ("pretrain", "distill"):
        count(records, stage, "kd", complete=True, CPU=300.0, GPU=1500.0)
    table = lines(records)
    assert table["kd"] == "3.0 | 20 | 1.00 | cpu"
    assert table["fitnet"] == "3.0 | 20 |  | cpu"
    assert "the counters of processors and GPUs" in table["note"]
    assert "Here it did not." not in table["note"]
    assert "share is missing" not in table["note"]


def test_energy_of_one_part_is_called_so(records: Path) -> None:
    count(records, "pretrain", "kd", complete=True, CPU=300.0, GPU=1500.0)  # on a machine that counts more
    count(records, "distill", "kd", complete=False, GPU=2100.0)
    for stage in ("pretrain", "distill"):
        count(records, stage, "fitnet", complete=False, CPU=360.0)
    table = lines(records)
    assert table["kd"] == "3.0 | 20 | 1.00 (GPU only) | cpu"
    assert table["fitnet"] == "3.0 | 20 | 0.20 (CPU only) | cpu"
    assert "share is missing" in table["note"]


def test_energy_of_one_stage_is_not_shown_as_that_of_the_run(records: Path) -> None:
    count(records, "distill", "kd", complete=True, CPU=1800.0)
    count(records, "pretrain", "fitnet", complete=False, CPU=1800.0)
    count(records, "distill", "fitnet", complete=False, GPU=1800.0)
    table = lines(records)
    assert table["kd"] == table["fitnet"] == "3.0 | 20 |  | cpu"
    assert "Here it did not." in table["note"]
