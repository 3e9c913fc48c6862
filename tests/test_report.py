import csv
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fabricated import NAMES, RIGHT, VALIDATION, edit, fabricate

from pipeline import report
from pipeline.inputs import InputError


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


PLACES: dict[str, Any] = {"bundles": Path("models/export"), "sheet": Path("data/prepared/sheet.png")}


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


def test_records_of_dropped_runs_are_nobodys(records: Path, tmp_path: Path) -> None:
    (records / "distill" / "fitnet.json").write_text("not even JSON")
    results = report.write(
        records,
        tmp_path / "reports",
        tmp_path / "plots",
        tmp_path / "gain.json",
        runs=["alone", "kd"],
        teachers=["big"],
        **PLACES,
    )
    assert list(results.runs) == ["alone", "kd"]
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and records not in path.parents]
    assert len(texts) == 6
    assert not any("fitnet" in text for text in texts)


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


def test_table_has_the_numbers_and_fits(records: Path) -> None:
    text = report.table(report.load(records, **NAMES), bundles=Path("models/export"), report=Path("reports/report.md"))
    assert max(map(len, text.splitlines())) <= report.WIDTH
    cells = {line[2:].split()[0]: " ".join(line.split()) for line in text.splitlines() if "resnet" in line}
    assert cells["big"] == "big (teacher) resnet32x4 96.00 1 7.433 29.50 4.25"
    assert cells["alone"] == "alone resnet8x4 72.00 ± 2.00 3 87.50 1.234 4.75 0.50"
    assert cells["kd"] == "kd resnet8x4 82.00 ± 2.65 3 +10.00 [+7.52, +12.48] 87.50 1.234 4.75 0.50"
    assert cells["fitnet"].startswith("* fitnet resnet8x4 80.00 ± 1.00 3 +8.00 [+5.52, +10.48]")
    assert "(best: models/export/fitnet)" in text
    assert "make ui" in text
    rows = [line for line in text.splitlines() if "resnet" in line]
    assert len({len(row) for row in rows}) == 1  # aligned


def test_table_with_long_names_still_fits(records: Path) -> None:
    name = "a_run_that_somebody_named_with_every_one_of_its_settings_in_the_name"
    for stage in report.RUN_STAGES:
        edit(records / stage / "kd.json", name=name)
        (records / stage / "kd.json").rename(records / stage / f"{name}.json")
    results = report.load(records, runs=["alone", name], teachers=["big"])
    lines = report.table(results, bundles=Path("models/export"), report=Path("reports/report.md")).splitlines()
    assert max(len(line) for line in lines if "bundles" not in line and "best on" not in line) <= report.WIDTH
    assert any("…" in line and "82.00 ± 2.65" in line for line in lines)


def test_one_seed_has_neither_spread_nor_interval(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records", right={name: scores[:1] for name, scores in RIGHT.items()})
    results = report.load(records, **NAMES)
    text = report.table(results, bundles=Path("b"), report=Path("r"))
    row = next(line for line in text.splitlines() if "fitnet" in line)
    assert "±" not in row
    assert "[" not in row
    assert "+9.00" in row
    assert "may be chance" in report.markdown(results, sheet="sheet.png", bundles="b")


def test_student_alone_may_be_best(tmp_path: Path) -> None:
    results = report.load(fabricate(tmp_path / "records", validation=VALIDATION | {"alone": 0.9}), **NAMES)
    text = report.markdown(results, sheet="sheet.png", bundles="b")
    assert results.best.name == "alone"
    assert "no method earned its cost" in text
    assert "has no student alone to be compared with" in text


def test_a_gain_within_chance_is_called_so(tmp_path: Path) -> None:
    results = report.load(fabricate(tmp_path / "records", right=RIGHT | {"fitnet": (72, 71, 78)}), **NAMES)
    assert "which chance alone could explain" in report.markdown(results, sheet="sheet.png", bundles="b")


def test_markdown_holds_data_classes_exports_and_provenance(records: Path) -> None:
    text = report.markdown(report.load(records, **NAMES), sheet="../data/prepared/sheet.png", bundles="../models/export")
    assert "| cat | 10 | 5 | 25 |" in text
    assert "![a few images of each class](../data/prepared/sheet.png)" in text
    assert "3 duplicates removed" in text
    # cats: alone loses 12, 13 and 11 of 25, fitnet 9, 8 and 10
    assert "| cat | 52.00 | 64.00 | +12.00 |" in text
    assert "| [kd](../models/export/kd) | 2 | onnx | student.onnx | 2.5e-07 | 2.5e-08 | 100.00 % | 64 |" in text
    assert "| kd | student | onnx | 1 | 0.50 | 0.62 | 2000.00 | 4.75 |" in text
    assert "| kd | big | resnet8x4 | kd | 20 | 79.00 |" in text
    assert '`{"kd_weight": 0.9, "protocol": {"shots": 5}}`' in text
    assert "paired by seed" in text
    assert text.count("| evaluate ") == 3
    assert re.search(r"python 3\.11\.7, torch 2\.15\.0, device cpu", text)


def test_plots_curves_are_long_and_whole(records: Path, tmp_path: Path) -> None:
    report.plots(report.load(records, **NAMES), tmp_path / "plots")
    with (tmp_path / "plots" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["run"], row["phase"]) for row in rows) == {
        ("big", "teacher"): 2,
        ("alone", "distill"): 9,
        ("kd", "distill"): 9,
        ("fitnet", "hint"): 6,
        ("fitnet", "distill"): 9,
    }
    last = next(row for row in rows if (row["run"], row["phase"], row["seed"], row["epoch"]) == ("kd", "distill", "1", "3.0"))
    assert (last["val_accuracy"], last["loss"]) == ("0.79", "1.5")
    assert {row["val_accuracy"] for row in rows if row["phase"] == "hint"} == {""}


def test_plots_confusion_counts_the_exported_seed(records: Path, tmp_path: Path) -> None:
    (tmp_path / "plots" / "confusion").mkdir(parents=True)
    (tmp_path / "plots" / "confusion" / "dropped.csv").write_text("actual,predicted\n")
    report.plots(report.load(records, **NAMES), tmp_path / "plots")
    assert sorted(path.name for path in (tmp_path / "plots" / "confusion").iterdir()) == ["alone.csv", "fitnet.csv", "kd.csv"]
    with (tmp_path / "plots" / "confusion" / "kd.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    images = {(row["actual"], row["predicted"]): int(row["images"]) for row in rows}
    assert sum(n for (actual, predicted), n in images.items() if actual == predicted) == 85
    assert images["fox", "cat"] == 3
    assert images["cat", "fox"] == 0
    assert [row["share"] for row in rows if row["actual"] == "fox"] == ["0.12", "0.0", "0.0", "0.88"]


def test_write_leaves_report_table_plots_and_gains(records: Path, tmp_path: Path) -> None:
    report.write(records, tmp_path / "reports", tmp_path / "plots", tmp_path / "metrics" / "gain.json", **NAMES, **PLACES)
    assert json.loads((tmp_path / "metrics" / "gain.json").read_text())["gain"] == pytest.approx({"kd": 0.10, "fitnet": 0.08})
    assert "82.00 ± 2.65" in (tmp_path / "reports" / "table.txt").read_text()
    assert "82.00 ± 2.65" in (tmp_path / "reports" / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["report.md", "table.txt"]
    assert not list(tmp_path.rglob("*.partial"))
