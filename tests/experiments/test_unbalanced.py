"""The folder of unbalanced digits, and the table of runs on it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from scratch_project import ROOT

from experiments import comparison, unbalanced
from experiments.comparison import Comparison
from pipeline.params import load_params

RECIPE = ROOT / "recipes/unbalanced.yaml"


def settings(**sections: Any) -> dict[str, Any]:
    return {**yaml.safe_load(RECIPE.read_text()), **sections}


def table_of(tmp_path: Path, given: dict[str, Any]) -> Comparison:
    """Train the runs on unbalanced digits."""
    unbalanced.main(["--out", str(tmp_path / "digits")])
    params, work = tmp_path / "params.yaml", tmp_path / "work"
    params.write_text(yaml.safe_dump(given))
    command = [str(params), "--images", str(tmp_path / "digits"), "--work", str(work)]
    comparison.main([*command, "--write", str(tmp_path / "table.md")])
    return Comparison(load_params(params), work)


def test_five_classes_have_a_fiftieth_but_three_images_at_least(tmp_path: Path) -> None:
    unbalanced.main(["--out", str(tmp_path / "digits")])
    names: list[str] = []
    for split, large, small in (("train", 120, 3), ("val", 17, 3), ("test", 34, 11)):
        files = [sorted((tmp_path / "digits" / split / str(digit)).iterdir()) for digit in range(10)]
        assert all(len(each) >= large for each in files[:5])
        assert all(small <= len(each) <= small + 1 for each in files[5:])
        names += [file.name for each in files for file in each]
    assert len(set(names)) == len(names)  # no image is in two splits


def test_the_table_has_the_scores_by_class(tmp_path: Path) -> None:
    given = settings()
    given["runs"] = {"alone": given["runs"]["alone"] | {"seeds": [0, 1]}}
    given["teachers"]["big"]["min_accuracy"] = 0
    for train in (given["train"], given["teachers"]["big"]["train"]):
        train |= {"epochs": 1, "points": 1}
    found = table_of(tmp_path, given)
    text = (tmp_path / "table.md").read_text()
    head, _, line = [line for line in text.splitlines() if line.startswith("|")]
    assert head.endswith("| balanced % | F1 % |")
    assert line.count("|") == head.count("|")
    metrics = found.read("evaluate", "alone").metrics
    balanced, f1 = line.split(" | ")[-2:]
    assert balanced.startswith(f"{100 * metrics['balanced_accuracy']:.2f} ± ")
    assert f1.startswith(f"{100 * metrics['macro_f1']:.2f} ± ")


@pytest.mark.slow
def test_class_balance_helps_the_small_classes(tmp_path: Path) -> None:
    given = settings()
    runs = {name: run for name, run in given["runs"].items() if name.startswith("alone")}
    given["teachers"]["big"]["train"] |= {"epochs": 1, "points": 1}
    found = table_of(tmp_path, given | {"runs": runs})
    f1 = {name: found.read("evaluate", name).metrics["macro_f1"] for name in runs}
    assert f1["alone_sampler"] > f1["alone"] + 0.1
    assert f1["alone_weights"] > f1["alone"] + 0.1
