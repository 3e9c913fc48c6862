"""Trainings side by side give the weights of trainings one after the other."""

import json
from pathlib import Path
from typing import Any

import pytest
from scratch_project import Project

from pipeline.files import sha256

RUN = {"teacher": "big", "student": "small", "seeds": [0]}
PARAMS: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "digits", "root": "data/raw", "size": 8},
    "augment": {"pad": 1, "views": 2},  # whose answers the runs share
    "protocol": {"shots": 4},
    "train": {"epochs": 6, "batch_size": 16, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 1, "batch_size": 64}}},
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {
        "alone": RUN | {"method": {"name": "ce"}},
        "kd": RUN | {"method": {"name": "kd"}},
        "hints": RUN | {"method": {"name": "fitnet"}, "phases": {"hint": {"epochs": 2}}},
    },
    "analysis": {},
    "export": {"parity_images": 20, "formats": ["onnx"]},
    "benchmark": {"batches": [1], "seconds": 0.05},
}


def weights(project: Project) -> dict[str, str]:
    files = sorted((project.place / "models").rglob("*.safetensors"))
    return {str(file.relative_to(project.place)): sha256(file) for file in files}


@pytest.mark.slow
def test_jobs_change_no_weight(tmp_path: Path) -> None:
    projects = {jobs: Project(tmp_path / jobs / "project", PARAMS) for jobs in ("1", "2")}
    for jobs, project in projects.items():
        project.params()
        project.do("git", "init", "-q")
        project.do("make", "-s", "-o", "setup", "run", f"JOBS={jobs}")
        assert json.loads(project.do("dvc", "status", "--json")) == {"installed": ["always changed"]}
        assert project.repro() == []
        assert sorted(project.rows()) == ["alone", "big", "hints", "kd"]
    one, two = (weights(project) for project in projects.values())
    assert one == two
    assert len(one) > 8
