"""Each method trains a run of the real graph, with `dvc repro`."""

import json
from pathlib import Path

import pytest
import yaml
from scratch_project import ROOT, Project

from pipeline import methods

pytestmark = pytest.mark.slow


def test_each_method_trains_a_run_of_the_graph(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    run = {"teacher": "big", "student": "small", "seeds": [0]}
    settings["teachers"]["big"]["train"]["epochs"] = 5
    settings["train"]["epochs"] = 3
    settings["runs"] = {name: run | {"method": {"name": name}} for name in methods.names()}
    project = Project(tmp_path / "every method", settings)
    project.params()
    project.do("git", "init", "-q")
    project.repro(*(f"evaluate@{name}" for name in methods.names()))
    for name in methods.names():
        record = json.loads((project.place / f"records/distill/{name}.json").read_text())
        assert len(record["curves"]["distill/seed-0"]["epoch"]) == 3, name
        evaluated = json.loads((project.place / f"records/evaluate/{name}.json").read_text())
        assert evaluated["metrics"]["accuracy"] > 0.05, name
