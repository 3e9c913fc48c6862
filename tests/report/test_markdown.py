import json
import re
from pathlib import Path

import pytest
from fabricated import NAMES, RIGHT, VALIDATION, fabricate, save_predictions

from pipeline.evaluation.predictions import load_predictions
from pipeline.records.results import load_results
from pipeline.report.markdown import markdown_report


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def report(records: Path) -> str:
    results = load_results(records, **NAMES)
    predictions = load_predictions(records / "evaluate" / f"{results.best.name}.npz")
    return markdown_report(
        results, predictions=predictions, sheet="../data/prepared/sheet.png", bundles="../models/export"
    )


def test_the_baseline_may_be_best(tmp_path: Path) -> None:
    text = report(fabricate(tmp_path / "records", validation=VALIDATION | {"alone": 0.9}))
    assert "**alone** is the best on validation (90.00 %): it was trained without a teacher" in text
    assert "There is no baseline to compare the best student with." in text


def test_a_gain_that_may_be_chance_is_called_so(tmp_path: Path) -> None:
    text = report(fabricate(tmp_path / "records", right=RIGHT | {"fitnet": (72, 71, 78)}))
    assert "points over the baseline (alone), which may be chance." in text


def test_a_gain_of_one_seed_may_be_chance(tmp_path: Path) -> None:
    text = report(fabricate(tmp_path / "records", right={name: scores[:1] for name, scores in RIGHT.items()}))
    assert "One seed gives no interval, so this may be chance." in text


def test_it_has_data_classes_exports_and_provenance(records: Path) -> None:
    text = report(records)
    assert "| cat | 10 | 5 | 25 |" in text
    assert "![a few images of each class](../data/prepared/sheet.png)" in text
    assert "30 images have no label. Files left out (left_out.csv): duplicate: 3, truncated: 1." in text
    # cats: the baseline gets 12, 13 and 11 of 25 wrong, fitnet 9, 8 and 10
    assert "| cat | 52.00 | 64.00 | +12.00 |" in text
    assert "| [kd](../models/export/kd) | onnx | student.onnx | 2 | 2.5e-07 | 2.5e-08 | 100.00 | 64 |" in text
    assert "| kd | student | onnx | 1 | 0.50 | 0.62 | 2000.00 | 4.75 |" in text
    assert "| kd | big | resnet8x4 | kd | 20 | 79.00 | 4.00 |" in text
    assert '`{"kd_weight": 0.9, "protocol": {"shots": 5}}`' in text
    assert "paired by seed" in text
    assert text.count("| evaluate ") == 3
    assert re.search(r"python 3\.11\.7, torch 2\.15\.0, device cpu", text)


def test_it_counts_errors_of_the_student_and_of_the_teacher(records: Path) -> None:
    save_predictions(records)
    text = report(records)
    # seed 2 takes 10 cats for dogs, and 3 images of each other class; the teacher gets only 4 cats wrong
    assert "| cat | dog | 10 | 40.00 % |" in text
    assert "| both right | 81 | 81.00 % |" in text
    assert "| only the teacher right | 15 | 15.00 % |" in text
    assert "| both wrong | 4 | 4.00 % |" in text


def test_it_has_the_costs_of_training(records: Path) -> None:
    assert "| fitnet | 3.0 | 20 |  | cpu |" in report(records)


def test_names_are_never_markup(records: Path) -> None:
    hostile = "<b>a|b</b> `x` [y](z) **w** \n# h"
    for file in (*(records / "evaluate").glob("*.json"), records / "prepare.json"):
        file.write_text(file.read_text().replace('"cat"', json.dumps(hostile)))
    text = report(records)
    assert "<b>" not in text.replace("\\<b", "")
    row = next(line for line in text.splitlines() if "| 52.00 | 64.00 | +12.00 |" in line)
    assert row.startswith("| \\<b\\>a\\|b\\</b\\> \\`x\\` \\[y\\](z) \\*\\*w\\*\\* \\# h |")
