import json
import re
from pathlib import Path

import pytest
from fabricated import NAMES, RIGHT, VALIDATION, edit, fabricate, keep_predictions

from pipeline import predictions, report
from pipeline.report.card import card
from pipeline.report.results import Results


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def told(results: Results) -> str:
    return card(results, said=None, sheet="sheet.png", bundles="b")


def test_student_alone_may_be_best(tmp_path: Path) -> None:
    results = report.load(fabricate(tmp_path / "records", validation=VALIDATION | {"alone": 0.9}), **NAMES)
    text = told(results)
    assert results.best.name == "alone"
    assert "no method earned its cost" in text
    assert "has no student alone to be compared with" in text


def test_a_gain_within_chance_is_called_so(tmp_path: Path) -> None:
    results = report.load(fabricate(tmp_path / "records", right=RIGHT | {"fitnet": (72, 71, 78)}), **NAMES)
    assert "which chance alone could explain" in told(results)


def test_markdown_holds_data_classes_exports_and_provenance(records: Path) -> None:
    text = card(report.load(records, **NAMES), said=None, sheet="../data/prepared/sheet.png", bundles="../models/export")
    assert "| cat | 10 | 5 | 25 |" in text
    assert "![a few images of each class](../data/prepared/sheet.png)" in text
    assert "3 duplicates removed" in text
    # cats: alone loses 12, 13 and 11 of 25, fitnet 9, 8 and 10
    assert "| cat | 52.00 | 64.00 | +12.00 |" in text
    assert "| [kd](../models/export/kd) | onnx | student.onnx | 2 | 2.5e-07 | 2.5e-08 | 100.00 | 64 |" in text
    assert "| kd | student | onnx | 1 | 0.50 | 0.62 | 2000.00 | 4.75 |" in text
    assert "| kd | big | resnet8x4 | kd | 20 | 79.00 | 4.00 |" in text
    assert '`{"kd_weight": 0.9, "protocol": {"shots": 5}}`' in text
    assert "paired by seed" in text
    assert text.count("| evaluate ") == 3
    assert re.search(r"python 3\.11\.7, torch 2\.15\.0, device cpu", text)


def test_one_seed_may_be_chance(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records", right={name: scores[:1] for name, scores in RIGHT.items()})
    assert "may be chance" in told(report.load(records, **NAMES))


def test_errors_are_counted_with_the_teacher_beside(records: Path) -> None:
    keep_predictions(records)
    results = report.load(records, **NAMES)
    said = predictions.load(records / "evaluate" / "fitnet.npz")
    text = card(results, said=said, sheet="sheet.png", bundles="b")
    # seed 2 loses 10 cats to the dogs and 3 of each other class; the teacher loses 4 cats and none else
    assert "| cat | dog | 10 | 40.00 % |" in text
    assert "| both right | 81 | 81.00 % |" in text
    assert "| only the teacher right | 15 | 15.00 % |" in text
    assert "| both wrong | 4 | 4.00 % |" in text


def test_cost_of_training(records: Path) -> None:
    text = told(report.load(records, **NAMES))
    # the teacher saw 40 images for 2 epochs in 8 s; fitnet 20 images for 2 and 3 epochs in 2 and 3 s, three seeds; 90 s a record
    assert "| big | 1.5 | 10 |" in text
    assert "| fitnet | 3.0 | 20 |" in text
    assert "here it doesn’t" in text


def counted(records: Path, stage: str, name: str, *, whole: bool, **joules: float) -> None:
    """As pipeline.record writes what a machine's counters say."""
    edit(records / stage / f"{name}.json", details={"sample": {"images": 20}, "energy_j": joules})
    if whole:
        edit(records / stage / f"{name}.json", metrics={"val_accuracy": 0.79, "energy_j": sum(joules.values())})


def test_energy_is_told_where_it_was_counted(records: Path) -> None:
    for stage in ("pretrain", "distill"):
        counted(records, stage, "kd", whole=True, CPU=300.0, GPU=1500.0)
    text = told(report.load(records, **NAMES))
    assert "| kd | 3.0 | 20 | 1.00 |" in text
    assert "| fitnet | 3.0 | 20 |  |" in text
    assert "here it doesn’t" not in text
    assert "the counters of processors and GPUs" in text
    assert "its share is missing" not in text


def test_energy_of_a_part_names_it(records: Path) -> None:
    counted(records, "pretrain", "kd", whole=True, CPU=300.0, GPU=1500.0)  # on a machine that counts more
    counted(records, "distill", "kd", whole=False, GPU=2100.0)
    for stage in ("pretrain", "distill"):
        counted(records, stage, "fitnet", whole=False, CPU=360.0)
    text = told(report.load(records, **NAMES))
    assert "| kd | 3.0 | 20 | 1.00 (GPU alone) |" in text
    assert "| fitnet | 3.0 | 20 | 0.20 (CPU alone) |" in text
    assert "its share is missing" in text


def test_energy_of_one_stage_is_not_that_of_the_run(records: Path) -> None:
    counted(records, "distill", "kd", whole=True, CPU=1800.0)
    counted(records, "pretrain", "fitnet", whole=False, CPU=1800.0)
    counted(records, "distill", "fitnet", whole=False, GPU=1800.0)
    text = told(report.load(records, **NAMES))
    assert "| kd | 3.0 | 20 |  | cpu |" in text
    assert "| fitnet | 3.0 | 20 |  | cpu |" in text
    assert "here it doesn’t" in text


def test_names_are_no_markup(records: Path) -> None:
    hostile = "<b>a|b</b> `x` [y](z) **w** \n# h"
    text = (records / "evaluate" / "kd.json").read_text()
    for file in (*(records / "evaluate").glob("*.json"), records / "prepare.json"):
        text = file.read_text()
        file.write_text(text.replace('"cat"', json.dumps(hostile)))
    text = told(report.load(records, **NAMES))
    assert "<b>" not in text.replace("\\<b", "")
    row = next(line for line in text.splitlines() if "| 52.00 | 64.00 | +12.00 |" in line)
    assert row.startswith("| \\<b\\>a\\|b\\</b\\> \\`x\\` \\[y\\](z) \\*\\*w\\*\\* \\# h |")
