"""Machines that share nothing but git and a DVC remote."""

from pathlib import Path

import pytest
from stub_project import StubProject


@pytest.fixture
def project(tmp_path: Path) -> StubProject:
    """With a remote, and committed before anything has run."""
    made = StubProject(tmp_path / "home" / "project", "a", "b")
    made.do("dvc", "remote", "add", "-q", "--default", "store", str(tmp_path / "remote"))
    made.do("git", "commit", "-qam", "a remote")
    return made


def clone(project: StubProject, place: Path) -> Path:
    project.do("git", "clone", "-q", str(project.place), str(place))
    return place


@pytest.mark.slow
def test_what_one_machine_has_pushed_no_other_one_makes_again(project: StubProject, tmp_path: Path) -> None:
    first, second = (clone(project, tmp_path / name) for name in ("first", "second"))
    project.do("dvc", "repro", "--pull", "export@a", cwd=first)
    of_a, of_b = (
        [f"{stage}@{run}" for stage in ("pretrain", "distill", "evaluate", "export")] for run in "ab"
    )
    before = ["check", "prepare", "trial", "teacher@big"]
    assert [each.stage for each in project.ran()] == before + of_a
    project.do("dvc", "push", "--run-cache", cwd=first)
    project.do("dvc", "repro", "--pull", "export@b", cwd=second)
    assert [each.stage for each in project.ran()] == of_b
    project.do("dvc", "push", "--run-cache", cwd=second)
    project.do("dvc", "fetch", "--run-cache")
    project.do("dvc", "repro", "--pull", "export")
    assert project.ran() == []
    assert (project.place / "models/students/b").read_text() == (second / "models/students/b").read_text()
    project.do("dvc", "repro")
    assert [each.stage for each in project.ran()] == [
        "views",
        "benchmark@a",
        "benchmark@b",
        "report",
        "track",
    ]
