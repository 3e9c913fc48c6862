"""dvc.yaml against the code and the .gitignore."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from closure import closure

ROOT = Path(__file__).parents[1]
GRAPH: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
LOADED_BY_NAME = {"pipeline/methods/${item.method.name}.py", "pipeline/methods/ce.py", "pipeline/methods"}  # what no import statement names
METHODS = [str(path.relative_to(ROOT)) for path in (ROOT / "pipeline/methods").glob("*.py") if path.stem not in ("base", "__init__")]


def body(stage: str) -> dict[str, Any]:
    return GRAPH[stage].get("do", GRAPH[stage])


def outs() -> Iterator[tuple[str, dict[str, Any]]]:
    for stage in GRAPH:
        for out in (*body(stage)["outs"], *body(stage).get("metrics", [])):
            yield from [(out, {})] if isinstance(out, str) else out.items()


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    code = {dep for dep in body(stage)["deps"] if dep.startswith(("pipeline/", "stages/"))} - LOADED_BY_NAME
    folders = {dep for dep in code if not dep.endswith(".py")}
    reached = closure(f"stages/{stage}.py")
    if "pipeline/methods/${item.method.name}.py" in body(stage)["deps"]:
        reached |= set().union(*(closure(file) - {file} for file in METHODS))  # any method may be the run's
    needed = {file for file in reached if not any(file.startswith(f"{folder}/") for folder in folders)}
    needed |= {folder for folder in folders if any(file.startswith(f"{folder}/") for file in reached)}
    assert code == needed, f"dvc.yaml lacks {sorted(needed - code)}, names in vain {sorted(code - needed)}"


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_a_run_depends_on_its_own_method_alone(stage: str) -> None:
    assert "pipeline/methods/${item.method.name}.py" in body(stage)["deps"]
    assert not [dep for dep in body(stage)["deps"] if dep.rstrip("/") == "pipeline/methods"]


@pytest.mark.parametrize("stage", GRAPH)
def test_a_command_is_given_every_path_it_reads_and_writes(stage: str) -> None:
    made = {name for out in (*body(stage)["outs"], *body(stage).get("metrics", [])) for name in ([out] if isinstance(out, str) else out)}
    words = body(stage)["cmd"].split()
    for path in made:
        assert any(path == word or path.startswith(f"{word}/") for word in words), f"{path} isn't in the command of {stage}"


def test_git_ignores_what_dvc_keeps_and_sees_what_it_does_not() -> None:
    for out, options in outs():
        path = out.replace("${key}", "kd")
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0
        assert ignored == (not path.startswith("metrics/")), path
        assert (options.get("cache") is False) == path.startswith(("metrics/", "reports/mlflow")), path
