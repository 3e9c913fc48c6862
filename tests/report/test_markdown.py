import json
import re
from pathlib import Path

from fabricated import (
    NAMES,
    RIGHT,
    VALIDATION,
    calibrate,
    edit,
    fabricate,
    save_predictions,
    unbalance,
)

from pipeline.records.results import load_results
from pipeline.report.markdown import markdown_report
from pipeline.report.run_gains import load_all_predictions


def report(records: Path) -> str:
    results = load_results(records, **NAMES)
    return markdown_report(
        results,
        predictions=load_all_predictions(results, records),
        bundle=f"models/export/{results.best.name}",
        sheet="../data/prepared/sheet.png",
        bundles="../models/export",
        views="../data/views.png",
    )


def test_the_baseline_may_be_best(tmp_path: Path) -> None:
    text = report(fabricate(tmp_path / "records", validation=VALIDATION | {"alone": 0.9}))
    assert (
        "**alone** is the best on validation (90.00 %): it is the baseline, trained without a teacher" in text
    )
    assert "There is no baseline to compare the best student with." in text


def test_a_gain_that_may_be_chance_is_called_so(tmp_path: Path) -> None:
    text = report(fabricate(tmp_path / "records", right=RIGHT | {"fitnet": (72, 71, 78)}))
    assert "points over the baseline (alone), which may be chance." in text


def test_a_gain_of_one_seed_may_be_chance(tmp_path: Path) -> None:
    text = report(fabricate(tmp_path / "records", right={name: scores[:1] for name, scores in RIGHT.items()}))
    assert "One seed gives no interval, so this may be chance." in text
    assert "Each run has 1 seed, so a gain may be chance" in text
    assert not re.search("±|standard deviation", text)


def test_different_numbers_of_processes_are_told(records: Path) -> None:
    assert "numbers of processes" not in report(records)
    edit(records / "distill/kd.json", environment={"processes": 2})
    assert "different numbers of processes (" in report(records)
    assert re.search(r"processes \(.*kd 2.*\), which changes", report(records))


def test_what_was_planned_stands_beside_what_it_took(records: Path) -> None:
    assert "| seconds | outputs |" in report(records)
    file = records / "distill/kd.json"
    edit(file, details=json.loads(file.read_text())["details"] | {"planned_seconds": 77.0})
    assert "| seconds | planned | outputs |" in report(records)
    assert re.search(r"^\| distill kd .*\| 77\.0 \|", report(records), re.MULTILINE)
    assert re.search(r"^\| evaluate kd .*\|  \|", report(records), re.MULTILINE)


def test_it_has_data_classes_exports_and_provenance(records: Path) -> None:
    text = report(records)
    assert "| cat | 10 | 5 | 25 |" in text
    assert "![a few images of each class](../data/prepared/sheet.png)" in text
    assert "30 images have no label. Files left out (left_out.csv): duplicate: 3, truncated: 1." in text
    # cats: the baseline gets 12, 13 and 11 of 25 wrong, fitnet 9, 8 and 10
    assert "| cat | 52.00 | 64.00 | +12.00 |" in text
    assert "| [kd](../models/export/kd) | onnx | student.onnx | 2 | 2.5e-07 | 2.5e-08 | 100.00 | 64 |" in text
    assert "| kd | student | onnx | 1 | 0.500 | 0.625 | 2000 | 4.75 |" in text
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


def test_the_file_comes_first(records: Path) -> None:
    text = report(records)
    assert (
        "The file to deploy is in the bundle [fitnet](../models/export/fitnet): right on 81.00 % of 100 test "
        "images (95 % interval 72.22 to 87.49); seed 2, the best of 3 on validation."
    ) in text
    assert "![what training sees of some images](../data/views.png)" in text


def test_it_compares_on_the_same_images(records: Path) -> None:
    assert "On the same test images" not in report(records)
    save_predictions(records)
    text = report(records)
    assert re.search(r"On the same test images its file gains \+7\.00 \\\[\+\d.*more than chance\.", text)
    assert re.search(
        r"^\| fitnet \| \+8\.00 \| \+5\.52 to \+10\.48 \| \+\S+ to \+\S+ \| \+7\.00 \|", text, re.M
    )


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


def test_it_has_the_means_over_classes_where_the_classes_differ_in_size(records: Path) -> None:
    assert "balanced" not in report(records)
    unbalance(records, 70, 10, 10, 10)
    text = report(records)
    assert "| net | file % | int8 % | mean % | balanced % | F1 % | n |" in text
    assert "| 82.00 ± 2.65 | 72.00 | 62.00 | 3 |" in text
    assert "0 for a class that is never predicted" in text


def test_thresholds_come_from_stored_predictions_if_nothing_is_calibrated(records: Path) -> None:
    assert "There are no predictions of the best student." in report(records)
    save_predictions(records)
    text = report(records)
    assert "probabilities are not calibrated (export.calibrate_probabilities)." in text
    assert "| 0.5 | 100.00 | 81.00 |" in text  # right answers have 0.6 to 0.63, wrong ones 0.9 to 0.93
    assert "| 0.7 | 19.00 | 0.00 |" in text
    assert "| 0.95 | 0.00 |  |" in text


def test_thresholds_come_from_the_export_if_it_calibrated(records: Path) -> None:
    calibrate(records, "fitnet")
    save_predictions(records)
    text = report(records)
    assert "probabilities are calibrated." in text
    assert "| 0.8 | 75.00 | 96.00 |" in text
    assert "| 0.5 | 100.00 | 81.00 |" not in text
    assert "| fitnet | float files | 1.75 | 8.00 | 2.50 | 100 |" in text
    assert "| fitnet | int8 | 1.75 | 8.25 | 2.75 | 100 |" in text
    calibrate(records, "fitnet", found=False)
    assert "probabilities are not calibrated" in report(records)
