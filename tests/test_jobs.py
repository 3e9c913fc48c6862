"""Trainings side by side give the weights of trainings one after the other."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from scratch_project import Project

from pipeline.files import sha256
from pipeline.project.ahead import ALWAYS

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


def assert_cache_is_sound(project: Project) -> None:
    """No file was changed after DVC had taken it: a link would have changed what DVC keeps."""
    cache = project.place / ".dvc/cache/files/md5"
    files = [file for file in cache.rglob("*") if file.is_file()]
    hashes = [hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() for file in files]
    assert hashes == [file.parent.name + file.name.removesuffix(".dir") for file in files]


def links(project: Project) -> int:
    """How many names the file of pixels has: with DVC's cache, two."""
    return (project.place / "data/prepared/images.npy").stat().st_nlink


@pytest.mark.slow
def test_jobs_and_links_change_no_weight(tmp_path: Path) -> None:
    """Nor do DVC's cheaper ways to keep two copies of a file."""
    projects = {jobs: Project(tmp_path / jobs / "project", PARAMS) for jobs in ("1", "2")}
    for jobs, project in projects.items():
        project.params()
        project.do("git", "init", "-q")
        if jobs == "2":
            project.do("dvc", "config", "cache.type", "hardlink,copy")
        project.do("make", "-s", "-o", "setup", "run", f"JOBS={jobs}")
        assert json.loads(project.do("dvc", "status", "--json")) == {ALWAYS[0]: ["always changed"]}
        assert project.repro() == []
        assert sorted(project.rows()) == ["big", "hints", "kd"]
    one, two = (weights(project) for project in projects.values())
    assert one == two
    assert links(projects["2"]) == 2
    projects["2"].do("dvc", "unprotect", "data/prepared/images.npy")
    assert links(projects["2"]) == 1
    projects["2"].do("dvc", "checkout", "--relink")
    assert links(projects["2"]) == 2
    assert_cache_is_sound(projects["2"])
    assert len(one) > 8
