"""The script that trains the runs of a params.yaml and prints their table."""

from pathlib import Path

import pytest
import yaml
from project import ROOT

from benchmarks import comparison
from pipeline import config

RECIPES = ["few_shot", "ten_shot", "five_shot", "tenth", "cross_task"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_legal_params_yaml_with_the_sections_of_ours(name: str) -> None:
    file = ROOT / f"benchmarks/{name}.yaml"
    config.load(file)
    assert yaml.safe_load(file.read_text()).keys() == yaml.safe_load((ROOT / "params.yaml").read_text()).keys()


def test_runs_are_trained_once_and_stand_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    run = {"teacher": "big", "student": "small", "seeds": [0, 1]}
    settings["teachers"]["big"]["train"]["epochs"] = 1
    settings["train"] |= {"epochs": 2}
    settings |= {
        "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm"}}},
        "runs": {"alone": run | {"method": {"name": "ce"}}, "srm": run | {"teacher": "atoms", "method": {"name": "srm"}}},
        "analysis": {},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    command = [str(tmp_path / "params.yaml"), "--work", str(tmp_path / "work")]

    comparison.main([*command, "alone"])
    assert "| alone | distill 2 |" in capsys.readouterr().out
    comparison.main([*command, "--write", str(tmp_path / "table.md")])
    said = capsys.readouterr().out
    assert "srm seed 1 distill" in said
    assert "alone seed" not in said  # it is there already
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0:2] for row in rows[1:]] == [["| alone", "distill 2"], ["| srm", "match 2, distill 2"]]
    accuracy = comparison.Bench(config.load(tmp_path / "params.yaml"), tmp_path / "work").accuracy("srm")
    mean = 50 * sum(accuracy.values())
    assert f"| {mean:.2f} ± " in rows[2]


def test_students_of_other_classes_than_their_teachers_are_told_by_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["teachers"]["big"]["train"]["epochs"] = 1
    settings["train"] |= {"epochs": 1}
    settings["protocol"] |= {"shots": 0, "fraction": 0.5, "class_overlap": 0.4}
    run = {"teacher": "big", "student": "small", "seeds": [0]}
    settings |= {"knowledge": {}, "analysis": {}, "runs": {name: run | {"method": {"name": name}} for name in ("ce", "refilled")}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    comparison.main([str(tmp_path / "params.yaml"), "--work", str(tmp_path / "work")])
    said = capsys.readouterr().out
    assert "50% of the training images, class_overlap 0.4, 8x8" in said
    metrics = comparison.Bench(config.load(tmp_path / "params.yaml"), tmp_path / "work").read("evaluate", "refilled").metrics
    assert f"with an AUC of {metrics['seen_auc']:.2f}." in said
    assert f"| {100 * metrics['joint']:.2f} | {100 * metrics['harmonic_mean']:.2f} |\n" in said
