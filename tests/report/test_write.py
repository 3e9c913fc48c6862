import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import NAMES, VALIDATION, fabricate

from pipeline.report.write import write

PLACES: dict[str, Any] = {"bundles": Path("models/export"), "data": Path("data/prepared")}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def test_records_of_dropped_runs_are_nobodys(records: Path, tmp_path: Path) -> None:
    (records / "distill" / "fitnet.json").write_text("not even JSON")
    results = write(
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
    assert len(texts) == 7
    assert not any("fitnet" in text for text in texts)


def test_write_leaves_report_table_plots_and_gains(records: Path, tmp_path: Path) -> None:
    write(records, tmp_path / "reports", tmp_path / "plots", tmp_path / "metrics" / "gain.json", **NAMES, **PLACES)
    assert json.loads((tmp_path / "metrics" / "gain.json").read_text())["gain"] == pytest.approx({"kd": 0.10, "fitnet": 0.08})
    assert json.loads((tmp_path / "metrics" / "gain.json").read_text())["validation"] == VALIDATION
    assert "82.00 ± 2.65" in (tmp_path / "reports" / "table.txt").read_text()
    assert "82.00 ± 2.65" in (tmp_path / "reports" / "report.md").read_text()
    assert "82.00 ± 2.65" in (tmp_path / "reports" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["report.html", "report.md", "table.txt"]
    assert not list(tmp_path.rglob("*.partial"))
