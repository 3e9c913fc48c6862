import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import NAMES, RIGHT, edit, fabricate, save_predictions

from pipeline.records.results import load_results
from pipeline.report.run_gains import (
    Comparison,
    compare_with_best,
    gains_on_images,
    gains_over_baseline,
    load_all_predictions,
)


def test_a_gain_is_that_of_a_calculation_by_hand(records: Path) -> None:
    gains = gains_over_baseline(load_results(records, **NAMES))
    assert set(gains) == {"kd", "fitnet"}
    kd = gains["kd"]  # differences .10 .09 .11, their sample std .01; t(0.975, 2 degrees) = 4.302653
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (kd.paired, kd.n) == (True, 3)
    assert kd.mean == pytest.approx(0.10)
    assert (kd.low, kd.high) == pytest.approx((0.10 - half, 0.10 + half), abs=1e-7)


def test_a_run_without_a_baseline_has_no_gain(records: Path) -> None:
    path = records / "distill" / "kd.json"
    edit(path, params=json.loads(path.read_text())["params"] | {"protocol": {"shots": 10}})
    assert set(gains_over_baseline(load_results(records, **NAMES))) == {"fitnet"}


def test_the_best_run_is_compared_with_runs_that_gain_more_than_the_spread(tmp_path: Path) -> None:
    right = RIGHT | {"kd": (74, 74, 74)}  # 2 points over the baseline, whose spread is 2 points
    results = load_results(fabricate(tmp_path / "small gain", right=right), **NAMES)
    assert compare_with_best(results) == []
    right = RIGHT | {"kd": (74, 74, 75)}
    results = load_results(fabricate(tmp_path / "larger gain", right=right), **NAMES)
    ((run, accuracies),) = compare_with_best(results)
    assert run.name == "kd"
    assert accuracies == pytest.approx(Comparison(best=0.80, other=0.7433333, baseline=0.72))


def test_the_files_that_are_compared_are_those_that_are_exported(records: Path) -> None:
    save_predictions(records)
    file = records / "evaluate" / "alone.json"
    edit(file, details=json.loads(file.read_text())["details"] | {"exported_seed": 0})
    results = load_results(records, **NAMES)
    predictions = load_all_predictions(results, records)
    found = gains_on_images(results, results.runs["kd"], predictions)
    assert found is not None
    assert found[1].mean == pytest.approx(0.85 - 0.70)  # seed 2 of kd, and seed 0 of the baseline
    assert gains_on_images(results, results.runs["alone"], predictions) is None
    others = replace(predictions["alone"], rows=predictions["alone"].rows + 1)
    assert gains_on_images(results, results.runs["kd"], predictions | {"alone": others}) is None
