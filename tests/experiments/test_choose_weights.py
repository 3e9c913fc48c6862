"""The script that chooses a weight of each run on validation images."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from scratch_project import ROOT

from experiments import choose_weights
from experiments.choose_weights import SEED, Choice, Trial, trials, with_weight
from pipeline.params import load_params

RECIPE = """\
runs:
  alone: {teacher: big, student: small, method: {name: ce}}
  kd: {teacher: big, student: small, method: {name: kd, ce_weight: 0.1, kd_weight: 0.9}}  # KD
  # at has term_weight: 1000.0
  at:
    teacher: big
    student: small
    method: {name: at, ce_weight: 0.1, kd_weight: 0.9, term_weight: 1000.0}
"""


def recipe_file(folder: Path) -> Path:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["teachers"]["big"]["train"]["epochs"] = 1
    settings["teachers"]["big"]["min_accuracy"] = 0
    settings["train"] |= {"epochs": 0, "steps": 2, "points": 1}
    settings["protocol"]["rest"] = "unused"
    settings |= {"knowledge": {}, "analysis": {}}
    del settings["runs"]
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings) + "\n" + RECIPE)
    return file


def test_the_best_of_three_weights_is_written_into_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, work, table = recipe_file(tmp_path), tmp_path / "work", tmp_path / "table.md"
    untouched = file.read_text()
    command = [str(file), "--work", str(work)]
    choose_weights.main([*command, "--write", str(table)])
    assert file.read_text() == untouched
    choice = Choice(load_params(file), work)
    assert choice.trials == {
        "kd-published": Trial("kd", "kd_weight", 0.9),
        "kd-tenth": Trial("kd", "kd_weight", 0.09),
        "kd-tenfold": Trial("kd", "kd_weight", 9.0),
        "at-published": Trial("at", "term_weight", 1000.0),
        "at-tenth": Trial("at", "term_weight", 100.0),
        "at-tenfold": Trial("at", "term_weight", 10000.0),
    }
    records = {name: (work / f"records/distill/{name}.json").read_text() for name in choice.trials}
    assert not (work / "records/evaluate").exists()
    for name, trial in choice.trials.items():
        record = choice.read("distill", name)
        assert record.params["run"]["method"][trial.setting] == trial.weight
        assert record.params["run"]["seeds"] == [SEED]
    capsys.readouterr()

    scores = {"kd-tenth": 0.5, "at-tenfold": 0.75}
    monkeypatch.setattr(Choice, "score", lambda self, name: scores.get(name, 0.25))
    choose_weights.main([*command, "--into", str(file), "--write", str(table)])
    assert file.read_text() == untouched.replace("kd_weight: 0.9}}  # KD", "kd_weight: 0.09}}  # KD").replace(
        "kd_weight: 0.9, term_weight: 1000.0", "kd_weight: 0.9, term_weight: 10000.0"
    )
    assert records == {name: (work / f"records/distill/{name}.json").read_text() for name in records}
    assert [line.split(" | ") for line in table.read_text().splitlines()[2:]] == [
        ["| kd", "`kd_weight`", "50.0", "25.0", "25.0", "0.09 |"],
        ["| at", "`term_weight`", "25.0", "25.0", "75.0", "10000 |"],
    ]
    assert trials(load_params(file)) == choice.trials  # they don't move with what was chosen


def test_the_published_weight_wins_where_no_other_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Choice, "score", lambda self, name: 0.5)
    choice = Choice(load_params(recipe_file(tmp_path)), tmp_path)
    assert [choice.best(run).weight for run in ("kd", "at")] == [0.9, 1000.0]


def test_a_recipe_without_the_run_stays_as_it_is() -> None:
    assert with_weight(RECIPE, Trial("sp", "term_weight", 3.0)) == RECIPE


def test_a_small_weight_is_a_number_in_yaml() -> None:
    changed = with_weight(
        "x: 1\nruns:\n  at: {method: {term_weight: 0.0001}}\n", Trial("at", "term_weight", 1e-5)
    )
    assert yaml.safe_load(changed)["runs"]["at"]["method"]["term_weight"] == 1e-5
