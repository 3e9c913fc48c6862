import csv
from collections import Counter
from pathlib import Path

from fabricated import NAMES, learn

from pipeline.records.results import load_results
from pipeline.report.plots import write_plots


def test_curves_have_a_line_for_each_point(records: Path, tmp_path: Path) -> None:
    write_plots(load_results(records, **NAMES), tmp_path / "plots", {})
    with (tmp_path / "plots" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["run"], row["phase"]) for row in rows) == {
        ("big", "teacher"): 2,
        ("alone", "distill"): 9,
        ("kd", "distill"): 9,
        ("fitnet", "hint"): 6,
        ("fitnet", "distill"): 9,
    }
    last = next(
        row
        for row in rows
        if (row["run"], row["phase"], row["seed"], row["epoch"]) == ("kd", "distill", "1", "3.0")
    )
    assert (last["val_accuracy"], last["loss"]) == ("0.79", "1.5")
    assert {row["val_accuracy"] for row in rows if row["phase"] == "hint"} == {""}


def test_curves_include_knowledge(records: Path, tmp_path: Path) -> None:
    learn(records, "atoms", "kd")
    write_plots(load_results(records, **NAMES), tmp_path / "plots", {})
    with (tmp_path / "plots" / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == "atoms"]
    assert [(row["phase"], row["seed"], row["loss"]) for row in rows] == [
        ("dictionary", "0", "0.7"),
        ("dictionary", "0", "0.6"),
    ]


def test_confusions_count_the_exported_seed_of_each_run(records: Path, tmp_path: Path) -> None:
    (tmp_path / "plots" / "confusion").mkdir(parents=True)
    (tmp_path / "plots" / "confusion" / "dropped.csv").write_text("actual,predicted\n")
    write_plots(load_results(records, **NAMES), tmp_path / "plots", {})
    assert sorted(path.name for path in (tmp_path / "plots" / "confusion").iterdir()) == [
        "alone.csv",
        "fitnet.csv",
        "kd.csv",
    ]
    with (tmp_path / "plots" / "confusion" / "kd.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    images = {(row["actual"], row["predicted"]): int(row["images"]) for row in rows}
    assert sum(n for (actual, predicted), n in images.items() if actual == predicted) == 85
    assert images["fox", "cat"] == 3
    assert images["cat", "fox"] == 0
    assert [row["share"] for row in rows if row["actual"] == "fox"] == ["0.12", "0.0", "0.0", "0.88"]
