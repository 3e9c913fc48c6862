"""The scripts that compare the forms of SRM's pixels, with students and without."""

from pathlib import Path

import pytest
import yaml
from scratch_project import ROOT
from world import save_pictures

from experiments import srm_dictionaries, srm_forms


def rows(table: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] in ("after", "before the activation")]


def test_each_form_has_a_row_with_its_dictionaries_and_its_students(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((ROOT / "recipes/few_shot.yaml").read_text())
    recipe["data"] |= {"size": 8, "val": 0.2}
    recipe["protocol"]["shots"] = 8
    recipe["train"] |= {"epochs": 1, "batch_size": 8}
    recipe["teachers"]["big"] |= {"net": "resnet8", "min_accuracy": 0}
    recipe["teachers"]["big"]["train"] |= {"epochs": 1, "batch_size": 8}
    recipe["students"]["small"]["net"] = "wrn_10_1"
    recipe["runs"]["srm_paper"]["phases"]["dictionary"]["epochs"] = 1
    recipe["analysis"] = {}
    file, images, work = tmp_path / "recipe.yaml", tmp_path / "images", tmp_path / "work"
    file.write_text(yaml.safe_dump(recipe))
    save_pictures(images, 60)
    forms = [
        ("after", "no"),
        ("after", "yes"),
        ("before the activation", "no"),
        ("before the activation", "yes"),
    ]

    command = ["--recipe", str(file), "--work", str(work), "--sparsity", "0.15"]
    trains = [*command, "--images", str(images), "--seeds", "0", "1"]
    srm_forms.main(["before-plain-150", *trains])
    assert [(row[0], row[1]) for row in rows(capsys.readouterr().out)] == [("before the activation", "no")]
    srm_forms.main(trains)
    found = rows(capsys.readouterr().out)
    assert [(row[0], row[1]) for row in found] == forms
    assert {(row[2], row[3]) for row in found} == {("0.15", "4, 9, 19")}
    assert len({row[5] for row in found}) == 4  # four forms, four errors
    assert all(" ± " in row[6] for row in found)
    assert not (work / "records/evaluate").exists()

    table = tmp_path / "table.md"
    srm_dictionaries.main([*command, "--steps", "5", "--seeds", "0", "--write", str(table)])
    found = rows(table.read_text())
    assert [(row[0], row[1]) for row in found] == forms
    assert {(row[2], row[3]) for row in found} == {("0.15", "4, 9, 19")}
    assert "effective atoms of 32, 64, 128" in table.read_text()
    assert len({row[5] for row in found}) == 4
