"""The sweeps in docs/sweeps.md: DVC accepts each command, each try is legal, one try of each sweep runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from scratch_project import ROOT, Project

from pipeline.params import load_params

PAGE = (ROOT / "docs/sweeps.md").read_text()
COMMANDS = re.findall(r"^dvc exp run --queue (.*)$", PAGE, flags=re.MULTILINE)
RUN = {"teacher": "big", "student": "small", "seeds": [0]}
METHODS = ("srm", "kd", "semckd")
RUNS = {name: RUN | {"method": {"name": name}} for name in METHODS}
KNOWLEDGE = {"atoms": {"teacher": "big", "method": {"name": "srm"}}}
TINY: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "digits", "root": "data/raw", "size": 8, "channels": 1},
    "augment": {},
    "protocol": {"shots": 2},
    "train": {"epochs": 1, "batch_size": 16},
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 1}}},
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": RUNS,
    "analysis": {},
    "export": {"parity_images": 20},
    "benchmark": {"batches": [1], "seconds": 0.01},
}


def changes(command: str) -> list[str]:
    """What the options of a command set, such as `++runs.kd.method.temperature=2,4,8`."""
    return re.findall(r"-S '([^']+)'", command)


def tries(command: str) -> list[list[str]]:
    """The changes of each try, as DVC expands the command."""
    return [overrides["params.yaml"] for overrides in get_hydra_sweeps({"params.yaml": changes(command)})]


def test_the_page_has_the_sweeps_of_its_table_in_this_order() -> None:
    counts = [len(tries(command)) for command in COMMANDS]
    assert counts == [9, 1, 1, 3, 6, 5, 6, 9, 3]  # the last one, of a dictionary, is not in the table
    image_and_pixel = counts[1] + counts[2]
    in_table = [int(count) for count in re.findall(r"^\| .* \| (\d+) \|$", PAGE, flags=re.MULTILINE)]
    assert in_table == [counts[0], image_and_pixel, *counts[3:8]]


def test_the_page_shows_the_runs_that_its_sweeps_need() -> None:
    (shown,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL) if "semckd:" in block
    ]
    assert {name: run["method"] for name, run in yaml.safe_load(shown)["runs"].items()} == {
        name: {"name": name} for name in METHODS
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_each_try_of_a_sweep_is_legal_and_differs_from_the_others(command: str, tmp_path: Path) -> None:
    file, seen = tmp_path / "params.yaml", set()
    for overrides in tries(command):
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["runs"] |= RUNS
        params["knowledge"] |= KNOWLEDGE
        file.write_text(yaml.safe_dump(params))
        apply_overrides(file, overrides)
        load = load_params(file)
        runs = [dict(load.run(name).settings) for name in METHODS]
        seen.add(json.dumps([*runs, dict(load.knowledge_run("atoms").settings)], sort_keys=True))
    assert len(seen) == len(tries(command))


FIRST_TRIES = {
    "srm.method.mu": {"1.5"},
    "srm.method.sparsity": {"0.01"},
    "srm.method.image": {"False"},
    "srm.method.pixel": {"False"},
    "kd.method.temperature": {"2"},
    "semckd.method.term_weight": {"5"},
    "semckd.method.ablation": {"equal"},
    "semckd.method.attention_temperature": {"1"},
    "semckd.method.preactivation": {"False"},
}


@pytest.mark.slow
def test_one_try_of_each_sweep_runs_and_is_listed(tmp_path: Path) -> None:
    project = Project(tmp_path / "a project", TINY)
    project.params()
    project.do("git", "init", "-q")
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "start")
    project.repro()
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "results")
    for command in COMMANDS:
        if "knowledge" not in command:
            first = [re.sub(r"(=[^,]+),.*", r"\1", change) for change in changes(command)]
            project.do("dvc", "exp", "run", "--queue", *(word for change in first for word in ("-S", change)))
    project.do("dvc", "exp", "run", "--run-all")
    show = "dvc exp show --only-changed --sort-by metrics/srm.json:score_val --sort-order desc"
    assert f"\n{show}\n" in PAGE
    shown = project.do(*show.split(), "--csv")
    head, *rows = (line.split(",") for line in shown.splitlines())
    found = {name: {row[head.index(f"runs.{name}")] for row in rows} - {""} for name in FIRST_TRIES}
    assert found == FIRST_TRIES, shown
    counts = {name: project.rows().count(name) for name in METHODS}
    assert counts == {"srm": 4, "kd": 2, "semckd": 5}  # all of them in one MLflow
