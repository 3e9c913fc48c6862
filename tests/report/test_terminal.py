import json
import re
from pathlib import Path

import pytest
from fabricated import NAMES, RIGHT, edit, fabricate, unbalance

from pipeline.records.results import RUN_STAGES, load_results
from pipeline.report.terminal import WIDTH, table


def test_the_table_has_the_numbers_and_fits(records: Path) -> None:
    text = table(
        load_results(records, **NAMES), bundles=Path("models/export"), report=Path("reports/report.md")
    )
    assert max(map(len, text.splitlines())) <= WIDTH
    cells = {line[2:].split()[0]: " ".join(line.split()) for line in text.splitlines() if "resnet" in line}
    assert cells["big"] == "big (teacher) resnet32x4 96.00 1 29.50 4.250"
    assert cells["alone"] == "alone resnet8x4 74.00 [64.6, 81.6] 72.00 ± 2.00 3 4.75 0.500"
    assert cells["kd"] == ("kd resnet8x4 85.00 [76.7, 90.7] 82.00 ± 2.65 3 +10.00 [+7.52, +12.48] 4.75 0.500")
    assert cells["fitnet"].startswith("* fitnet resnet8x4 81.00 [72.2, 87.5] 80.00 ± 1.00 3 +8.00")
    assert "the gain's 95 % interval for other seeds." in " ".join(text.split())
    assert (
        "To deploy: models/export/fitnet, right on 81.00 % of 100 test images (95 % interval 72.22 to "
        "87.49); seed 2, the best of 3 on validation."
    ) in " ".join(text.split())
    assert "(best: models/export/fitnet)" in text
    assert "make ui" in text
    rows = [line for line in text.splitlines() if "resnet" in line]
    assert len({len(row) for row in rows}) == 1  # they are aligned


def test_the_table_fits_with_long_names(records: Path) -> None:
    name = "a_run_that_somebody_named_with_every_one_of_its_settings_in_the_name"
    for stage in RUN_STAGES:
        edit(records / stage / "kd.json", name=name)
        (records / stage / "kd.json").rename(records / stage / f"{name}.json")
    results = load_results(records, runs=["alone", name], teachers=["big"])
    lines = table(results, bundles=Path("models/export"), report=Path("reports/report.md")).splitlines()
    assert max(len(line) for line in lines if not re.search("bundles|best on|To deploy", line)) <= WIDTH
    assert any("…" in line and "82.00 ± 2.65" in line for line in lines)


def test_one_seed_has_neither_spread_nor_interval(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records", right={name: scores[:1] for name, scores in RIGHT.items()})
    results = load_results(records, **NAMES)
    text = table(results, bundles=Path("b"), report=Path("r"))
    row = next(line for line in text.splitlines() if "fitnet" in line)
    assert "±" not in row
    assert row.count("[") == 1  # of the file
    assert "+9.00" in row
    assert "±" not in text
    assert "one seed gives no interval." in " ".join(text.split())
    assert "seed 0, the only one." in " ".join(text.split())


def test_a_run_of_one_seed_beside_others_has_no_interval(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records", right=RIGHT | {"fitnet": (80,)})
    text = table(load_results(records, **NAMES), bundles=Path("b"), report=Path("r"))
    assert "± is their standard deviation," in " ".join(text.split())
    assert "95 % interval for other seeds (none from one seed)." in " ".join(text.split())


def test_means_over_classes_are_shown_where_the_classes_differ_in_size(records: Path) -> None:
    def shown() -> str:
        return table(load_results(records, **NAMES), bundles=Path("b"), report=Path("r"))

    assert "balanced" not in shown()
    unbalance(records, 70, 10, 10, 10)
    lines = shown().splitlines()
    assert max(map(len, lines)) <= WIDTH
    head, rows = " ".join(lines[0].split()), [" ".join(line.split()) for line in lines if "resnet" in line]
    assert head == "net file % mean % balanced % F1 % n gain, points MB ms"
    assert rows[0] == "big (teacher) resnet32x4 96.00 86.00 76.00 1 29.50 4.250"
    assert rows[1] == "alone resnet8x4 74.00 72.00 ± 2.00 62.00 52.00 3 4.75 0.500"
    assert "0 for a class that is never predicted" in " ".join(shown().split())


def test_records_from_before_the_means_over_classes_are_shown_without_them(records: Path) -> None:
    unbalance(records, 70, 10, 10, 10)
    for path in (records / "evaluate").glob("*.json"):
        record = json.loads(path.read_text())
        for scores in (record["metrics"], record["details"]["teacher"]):
            del scores["balanced_accuracy"], scores["macro_f1"]
        edit(path, **record)
    text = table(load_results(records, **NAMES), bundles=Path("b"), report=Path("r"))
    assert "alone resnet8x4 74.00 72.00 ± 2.00 3 4.75 0.500" in " ".join(text.split())


@pytest.mark.parametrize(
    ("select", "words"), [("macro_f1", "macro-F1 66.60 % there"), ("loss", "cross-entropy 0.1230 there")]
)
def test_the_best_is_named_with_the_score_it_was_chosen_by(records: Path, select: str, words: str) -> None:
    for path in (records / "distill").glob("*.json"):
        record = json.loads(path.read_text())
        record["metrics"] |= {"val_macro_f1": 0.666, "val_loss": 0.123}
        edit(path, metrics=record["metrics"], details=record["details"] | {"select": select})
    text = table(load_results(records, **NAMES), bundles=Path("b"), report=Path("r"))
    assert f"* best on validation: alone ({words})" in text
