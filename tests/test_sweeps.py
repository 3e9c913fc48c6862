"""The papers' sweeps as README prints them: each is accepted by DVC and its settings by the project; one try of each runs to the end."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from project import ROOT, Project

from pipeline import config

RUN = {"teacher": "big", "student": "small", "seeds": [0]}
RECIPES = [  # the options of `dvc exp run --queue`, and how many experiments they are
    ("-S '++runs.srm.method.mu=1.5,2,3' -S '++runs.srm.method.sparsity=0.01,0.02,0.03'", 9),
    ("-S '++runs.srm.method.image=false'", 1),
    ("-S '++runs.srm.method.pixel=false'", 1),
    ("-S '++runs.kd.method.temperature=2,4,8'", 3),
    ("-S '++runs.semckd.method.term_weight=1,5,50,400'", 4),
    ("-S '++runs.semckd.method.ablation=equal,shared,no_projection,no_mlp,no_similarity'", 5),
]
METHODS: dict[str, Any] = {"alone": {"name": "ce"}, "kd": {"name": "kd"}, "srm": {"name": "srm"}, "semckd": {"name": "semckd"}}
TINY: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "digits", "root": "data/raw", "size": 8, "channels": 1},
    "augment": {},
    "protocol": {"shots": 2},
    "train": {"epochs": 1, "batch_size": 16},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 1}}},
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {name: RUN | {"method": METHODS[name]} for name in ("srm", "kd", "semckd")},
    "analysis": {},
    "export": {"parity_images": 20},
    "benchmark": {"batches": [1], "seconds": 0.01},
}


@pytest.mark.parametrize(("recipe", "count"), RECIPES)
def test_every_try_of_a_recipe_is_legal(recipe: str, count: int, tmp_path: Path) -> None:
    tries = get_hydra_sweeps({"params.yaml": re.findall(r"'([^']+)'", recipe)})
    assert len(tries) == count
    assert f"dvc exp run --queue {recipe}\n" in (ROOT / "README.md").read_text()
    file, seen = tmp_path / "params.yaml", set()
    for overrides in tries:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["runs"] |= {name: RUN | {"method": method} for name, method in METHODS.items()}
        file.write_text(yaml.safe_dump(params))
        apply_overrides(file, overrides["params.yaml"])
        load = config.load(file)
        seen.add("\n".join(load.method(run).model_dump_json() for run in METHODS))
    assert len(seen) == count


CHANGES = {
    "srm.method.mu": {"1.5"},
    "srm.method.sparsity": {"0.01"},
    "srm.method.image": {"False"},
    "srm.method.pixel": {"False"},
    "kd.method.temperature": {"2"},
    "semckd.method.term_weight": {"1"},
    "semckd.method.ablation": {"equal"},
}


@pytest.mark.slow
def test_one_try_of_each_recipe_runs_and_is_listed(tmp_path: Path) -> None:
    project = Project(tmp_path / "a project", TINY)
    project.params()
    project.do("git", "init", "-q")
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "start")
    project.repro()
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "results")
    for recipe, _ in RECIPES:
        first = [re.sub(r"(=[^,]+),.*", r"\1", change) for change in re.findall(r"'([^']+)'", recipe)]
        project.do("dvc", "exp", "run", "--queue", *(word for change in first for word in ("-S", change)))
    project.do("dvc", "exp", "run", "--run-all")
    shown = project.do("dvc", "exp", "show", "--only-changed", "--sort-by", "validation.srm", "--sort-order", "desc", "--csv")
    head, *rows = (line.split(",") for line in shown.splitlines())
    told = {name: {row[head.index(f"runs.{name}")] for row in rows} - {""} for name in CHANGES}
    assert told == CHANGES, shown
    assert {name: project.rows().count(name) for name in ("srm", "kd", "semckd")} == {"srm": 4, "kd": 2, "semckd": 3}  # all in one MLflow
