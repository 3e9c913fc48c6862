import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import NAMES, VALIDATION, fabricate

from pipeline.report.write_report import write_report

PLACES: dict[str, Any] = {
    "bundles": Path("models/export"),
    "data": Path("data/prepared"),
    "views": Path("nowhere.png"),
}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def test_records_of_runs_that_were_removed_are_not_read(records: Path, tmp_path: Path) -> None:
    (records / "distill" / "fitnet.json").write_text("not even JSON")
    results = write_report(
        records,
        tmp_path / "reports",
        tmp_path / "plots",
        tmp_path / "gain.json",
        runs=["alone", "kd"],
        teachers=["big"],
        **PLACES,
    )
    assert list(results.runs) == ["alone", "kd"]
    texts = [
        path.read_text() for path in tmp_path.rglob("*") if path.is_file() and records not in path.parents
    ]
    assert len(texts) == 7
    assert not any("fitnet" in text for text in texts)


def test_it_writes_the_reports_the_plots_and_the_metrics(records: Path, tmp_path: Path) -> None:
    write_report(
        records,
        tmp_path / "reports",
        tmp_path / "plots",
        tmp_path / "metrics" / "gain.json",
        **NAMES,
        **PLACES,
    )
    metrics = json.loads((tmp_path / "metrics" / "gain.json").read_text())
    assert metrics["gain"] == pytest.approx({"kd": 0.10, "fitnet": 0.08})
    assert metrics["validation"] == VALIDATION
    reports = {path.name: path.read_text() for path in (tmp_path / "reports").iterdir()}
    assert sorted(reports) == ["report.html", "report.md", "table.txt"]
    assert all("82.00 ± 2.65" in text for text in reports.values())
    assert not list(tmp_path.rglob("*.partial"))
