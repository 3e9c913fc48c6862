import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import NAMES, VALIDATION, edit, unbalance

from pipeline.records.results import load_results
from pipeline.report.write_report import metrics_of, write_report

PLACES: dict[str, Any] = {
    "bundles": Path("models/export"),
    "data": Path("data/prepared"),
    "views": Path("nowhere.png"),
}


def test_records_of_runs_that_were_removed_are_not_read(records: Path, tmp_path: Path) -> None:
    (records / "distill" / "fitnet.json").write_text("not even JSON")
    results = write_report(
        records,
        tmp_path / "reports",
        tmp_path / "plots",
        tmp_path / "metrics",
        runs=["alone", "kd"],
        teachers=["big"],
        **PLACES,
    )
    assert list(results.runs) == ["alone", "kd"]
    texts = [
        path.read_text() for path in tmp_path.rglob("*") if path.is_file() and records not in path.parents
    ]
    assert len(texts) == 8
    assert not any("fitnet" in text for text in texts)


def test_dvc_shows_at_most_ten_numbers_of_a_run(records: Path) -> None:
    unbalance(records, 70, 10, 10, 10)
    file = records / "export" / "fitnet.json"
    details = json.loads(file.read_text())["details"]
    details["formats"]["int8"] = {"accepted": True, "test": {"accuracy": 0.805}}
    edit(file, details=details)
    results = load_results(records, **NAMES)
    found = metrics_of(results, "fitnet")
    assert len(found) == 10
    assert found["accuracy_test_int8"] == 0.805
    assert found["macro_f1_test"] == pytest.approx(0.61)
    assert found["balanced_accuracy_test"] == pytest.approx(0.71)


def test_it_writes_the_reports_the_plots_and_the_metrics(records: Path, tmp_path: Path) -> None:
    write_report(
        records,
        tmp_path / "reports",
        tmp_path / "plots",
        tmp_path / "metrics",
        **NAMES,
        **PLACES,
    )
    metrics = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "metrics").iterdir()}
    assert {name: each["score_val"] for name, each in metrics.items()} == VALIDATION
    assert {name: each.get("gain_points") for name, each in metrics.items()} == pytest.approx(
        {"alone": None, "kd": 10.0, "fitnet": 8.0}
    )
    assert metrics["fitnet"] == {
        "accuracy_test": 0.81,
        "accuracy_test_mean": 0.8,
        "accuracy_test_spread": 0.01,
        "gain_points": 8.0,
        "latency_ms": 0.5,
        "score_val": 0.83,
        "size_mb": 4.75,
    }
    reports = {path.name: path.read_text() for path in (tmp_path / "reports").iterdir()}
    assert sorted(reports) == ["report.html", "report.md", "table.txt"]
    assert all("82.00 ± 2.65" in text for text in reports.values())
    assert not list(tmp_path.rglob("*.partial"))
