"""dvc.yaml against the code and the .gitignore."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import load_params
from pipeline.project.check import modules_of_stages

ROOT = Path(__file__).parents[1]
FILES = ("tool/dvc.yaml", "dvc.yaml")
GRAPH: dict[str, Any] = {
    name: body for file in FILES for name, body in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}
FIRST = ("installed", "check")  # they find out what the code of the others is


def body(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = GRAPH[stage].get("do", GRAPH[stage])
    return found


def outs() -> Iterator[tuple[str, dict[str, Any]]]:
    for stage in GRAPH:
        for out in (*body(stage)["outs"], *body(stage).get("metrics", [])):
            yield from [(out, {})] if isinstance(out, str) else out.items()


@pytest.mark.parametrize("stage", [stage for stage in GRAPH if stage not in FIRST])
def test_a_stage_depends_on_its_code(stage: str) -> None:
    name = f"{stage}/${{key}}" if "foreach" in GRAPH[stage] else stage
    assert [dep for dep in body(stage)["deps"] if dep.startswith("records/code")] == [f"records/code/{name}"]


def test_the_code_of_every_stage_is_listed() -> None:
    params = load_params(ROOT / "params.yaml")
    listed = {name for name, _ in modules_of_stages(params)}
    keys = {
        stage: getattr(params, GRAPH[stage]["foreach"][2:-1]) if "foreach" in GRAPH[stage] else None
        for stage in GRAPH
        if stage not in FIRST
    }
    assert listed == {f"{stage}/{key}" for stage, named in keys.items() for key in named or ()} | {
        stage for stage, named in keys.items() if named is None
    }


@pytest.mark.parametrize("stage", GRAPH)
def test_a_command_is_given_every_path_it_reads_and_writes(stage: str) -> None:
    made = {
        name
        for out in (*body(stage)["outs"], *body(stage).get("metrics", []))
        for name in ([out] if isinstance(out, str) else out)
    }
    words = body(stage)["cmd"].split()
    for path in made:
        assert any(path == word or path.startswith(f"{word}/") for word in words), (
            f"{path} isn't in the command of {stage}"
        )


def test_git_ignores_what_dvc_keeps_and_sees_what_it_does_not() -> None:
    for out, options in outs():
        path = out.replace("${key}", "kd")
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0
        assert ignored == (path != "metrics"), path
        assert (options.get("cache") is False) == path.startswith(("metrics", "reports/mlflow")), path
