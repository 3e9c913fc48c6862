import json
import math
from pathlib import Path
from typing import Any

import pytest
from fabricated import NAMES, edit, fabricate, learn

from pipeline import report
from pipeline.inputs import InputError
from pipeline.report import costs, figures


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def test_best_is_best_on_validation_not_on_test(records: Path) -> None:
    assert report.load(records, **NAMES).best.name == "fitnet"


def test_gain_by_hand(records: Path) -> None:
    gains = report.gains(report.load(records, **NAMES))
    assert set(gains) == {"kd", "fitnet"}
    kd = gains["kd"]  # differences .10 .09 .11, their sample std .01; t(0.975, 2 degrees) = 4.302653
    assert kd.paired
    assert kd.n == 3
    assert kd.mean == pytest.approx(0.10)
    assert (kd.low, kd.high) == pytest.approx((0.10 - 4.302653 * 0.01 / math.sqrt(3), 0.10 + 4.302653 * 0.01 / math.sqrt(3)), abs=1e-7)


@pytest.mark.parametrize(("field", "value"), [("protocol", {"shots": 10}), ("student", {"net": "resnet20"})])
def test_no_gain_over_a_student_alone_of_another_setting(records: Path, field: str, value: Any) -> None:
    path = records / "distill" / "kd.json"
    edit(path, params=json.loads(path.read_text())["params"] | {field: value})
    results = report.load(records, **NAMES)
    assert set(report.gains(results)) == {"fitnet"}
    assert results.runs["kd"].baseline is None


def test_of_two_students_alone_the_better_on_validation_counts(records: Path) -> None:
    for stage in report.RUN_STAGES:
        twin = json.loads((records / stage / "alone.json").read_text()) | {"name": "longer"}
        if stage == "distill":
            twin["metrics"]["val_accuracy"] = 0.75
        (records / stage / "longer.json").write_text(json.dumps(twin))
    results = report.load(records, runs=["alone", "longer", "kd"], teachers=["big"])
    assert [run.baseline for run in results.runs.values()] == [None, None, "longer"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), r"evaluate/kd.json: there is no record of stage evaluate@kd. Run `dvc repro evaluate@kd`"),
        (lambda path: path.write_text("{"), r"not a record of stage evaluate@kd"),
        (lambda path: path.write_text('{"stage": "evaluate"}'), r"not a record of stage evaluate@kd"),
        (lambda path: edit(path, schema=9), r"schema 9 of evaluate kd, not 1"),
        (lambda path: edit(path, name="fitnet"), r"evaluate fitnet, not 1 of evaluate@kd"),
    ],
)
def test_unusable_record_names_the_stage_to_run(records: Path, damage: Any, told: str) -> None:
    damage(records / "evaluate" / "kd.json")
    with pytest.raises(InputError, match=told):
        report.load(records, **NAMES)


def test_what_a_teacher_learned_once_is_there_once(records: Path) -> None:
    learn(records, "atoms", "kd", "fitnet")
    results = report.load(records, **NAMES)
    assert {name: run.knowledge for name, run in results.runs.items()} == {"alone": None, "kd": "atoms", "fitnet": "atoms"}
    assert [record.name for record in results.records if record.stage == "knowledge"] == ["atoms"]
    assert [cost.name for cost in costs.training(results)] == ["big", "atoms (knowledge)", "fitnet", "kd", "alone"]
    (learned,) = (cost for cost in costs.training(results) if cost.name == "atoms (knowledge)")
    assert learned.images_per_s == pytest.approx(20 * 2 / 60)
    assert "atoms · dictionary" in [figure.title for figure in figures.loss_curves(results)]


def test_knowledge_without_a_record_is_named(records: Path) -> None:
    learn(records, "atoms", "kd")
    (records / "knowledge" / "atoms.json").unlink()
    with pytest.raises(InputError, match=r"there is no record of stage knowledge@atoms. Run `dvc repro knowledge@atoms`"):
        report.load(records, **NAMES)
