"""The script that trains the runs of a params file and prints their table."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from scratch_project import ROOT

from experiments import comparison
from experiments.comparison import Comparison
from pipeline.params import load_params
from pipeline.project import dependencies

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_is_a_recipe_for_each_table_of_the_results() -> None:
    text = (ROOT / "docs/results.md").read_text()
    assert {file.stem for file in RECIPES} == {
        line.removeprefix("<!-- ").removesuffix(" -->")
        for line in text.splitlines()
        if line.startswith("<!-- ") and "/" not in line and "_weights" not in line
    }


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_is_legal_and_has_the_sections_of_our_params(file: Path) -> None:
    load_params(file)
    ours = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert yaml.safe_load(file.read_text()).keys() == ours.keys()


def tiny_settings() -> dict[str, Any]:
    """Ours with one quick teacher and no runs."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["teachers"]["big"]["train"]["epochs"] = 1
    settings["teachers"]["big"]["min_accuracy"] = 0
    return settings | {"knowledge": {}, "runs": {}, "analysis": {}}


def test_a_run_is_trained_once_and_has_its_line_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings()
    run = {"teacher": "big", "student": "small", "seeds": [0, 1]}
    settings["train"] |= {"epochs": 2, "steps": 0}
    settings |= {
        "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm"}}},
        "runs": {
            "alone": run | {"method": {"name": "ce"}},
            "srm": run | {"teacher": "atoms", "method": {"name": "srm"}},
        },
    }
    params, work, file = tmp_path / "params.yaml", tmp_path / "work", tmp_path / "table.md"
    params.write_text(yaml.safe_dump(settings))
    command = [str(params), "--work", str(work)]

    comparison.main([*command, "alone"])
    assert "| alone | distill 2 |" in capsys.readouterr().out
    trained = (work / "records/distill/alone.json").read_text()
    comparison.main([*command, "--write", str(file)])
    printed = capsys.readouterr().out
    assert printed.endswith(file.read_text())
    assert "srm: test accuracy" in printed
    assert "alone: test accuracy" not in printed
    assert (work / "records/distill/alone.json").read_text() == trained
    heading, *lines = [line for line in file.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0:2] for line in lines] == [
        ["| alone", "distill 2"],
        ["| srm", "dictionary 2, match 2, distill 2"],
    ]
    assert {line.count("|") for line in lines} == {heading.count("|")}
    found = Comparison(load_params(params), work)
    accuracy, baseline = (list(found.accuracy(name).values()) for name in ("srm", "alone"))
    assert f"| {50 * sum(accuracy):.2f} ± " in lines[1]
    assert f"| {50 * (sum(accuracy) - sum(baseline)):+.2f} [" in lines[1]


def test_a_run_with_other_classes_than_its_teacher_has_the_scores_among_all_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings()
    settings["train"] |= {"epochs": 1, "steps": 0}
    settings["protocol"] |= {"shots": 0, "fraction": 0.5, "class_overlap": 0.4}
    run = {"teacher": "big", "student": "small", "seeds": [0]}
    settings["runs"] = {name: run | {"method": {"name": name}} for name in ("ce", "refilled")}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(settings))
    comparison.main([str(params), "--work", str(tmp_path / "work")])
    printed = capsys.readouterr().out
    assert "50% of the training images, class_overlap 0.4, 8x8" in printed
    metrics = Comparison(load_params(params), tmp_path / "work").read("evaluate", "refilled").metrics
    assert f"with an AUC of {metrics['seen_auc']:.2f}." in printed
    assert f"| {100 * metrics['joint']:.2f} | {100 * metrics['harmonic_mean']:.2f} |\n" in printed


def test_the_code_of_a_comparison_does_not_depend_on_compiled_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (comparison, dependencies):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "pipeline/__pycache__").mkdir(parents=True)
    source = tmp_path / "pipeline/a.py"
    source.write_text("a = 1\n")
    params = load_params(ROOT / "params.yaml")
    code = Comparison(params, tmp_path).code
    (tmp_path / "pipeline/__pycache__/a.pyc").write_bytes(b"compiled")
    assert Comparison(params, tmp_path).code == code
    source.write_text("a = 2\n")
    assert Comparison(params, tmp_path).code != code
