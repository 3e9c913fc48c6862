import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.params import Params, load_params
from pipeline.project.check import modules_of_stages
from pipeline.project.dependencies import ROOT, closure, listing

STAGES = sorted(
    path.stem for path in (ROOT / "stages").glob("[!_]*.py") if path.stem not in ("check", "installed")
)
TRAINING = ("teacher/", "knowledge/", "pretrain/", "distill/")
LOADED = """
import pipeline, runpy, sys, unittest.mock
pipeline.params = sys.modules["pipeline.params"] = unittest.mock.MagicMock()
sys.argv = ["-m", "--help"]
try:
    runpy.run_module("stages.{stage}", run_name="__main__")
except SystemExit:
    pass
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
"""


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def changed(params: Params, **sections: object) -> dict[str, set[str]]:
    """The files of each stage if these sections of params.yaml are replaced."""
    return {
        name: closure(*modules)
        for name, modules in modules_of_stages(Params.model_validate(params.model_dump() | sections))
    }


def write_modules(root: Path, texts: dict[str, str]) -> None:
    for file, text in texts.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text)


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_loads_is_listed(stage: str) -> None:
    """Without params.py, whose imports only check params.yaml."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(stage=stage)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {
        Path(file).relative_to(ROOT).as_posix()
        for file in done.stdout.split("\n")
        if file.startswith((f"{ROOT}/pipeline", f"{ROOT}/stages"))
    }
    listed = closure(f"stages.{stage}")
    assert loaded
    assert loaded <= listed


def test_a_run_has_the_code_of_its_own_method_and_partner_only(params: Params) -> None:
    runs = {
        "mine": {
            "teacher": "big",
            "student": "small",
            "method": {"name": "semckd", "combine": {"name": "crd"}},
        }
    }
    listed = changed(params, runs=runs)
    for stage in ("pretrain/mine", "distill/mine"):
        methods = {Path(file).stem for file in listed[stage] if file.startswith("pipeline/methods/")}
        assert methods == {"__init__", "_base", "_combined", "semckd", "crd"}
    assert not any(file.startswith("pipeline/methods/") for file in listed["evaluate/mine"])


def test_what_a_method_imports_is_code_of_its_runs(params: Params) -> None:
    runs = {name: {"teacher": "big", "student": "small", "method": {"name": name}} for name in ("pkt", "kd")}
    listed = changed(params, runs=runs)
    assert "pipeline/methods/_neighbours.py" in listed["distill/pkt"]
    assert "pipeline/methods/_neighbours.py" not in listed["distill/kd"]


def test_a_network_of_ones_own_is_listed_with_what_it_imports(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = "from my_nets import blocks"
    write_modules(tmp_path, {"my_nets/__init__.py": "", "my_nets/small.py": small, "my_nets/blocks.py": ""})
    monkeypatch.chdir(tmp_path)
    listed = changed(params, students={"small": {"net": "my_nets.small:make"}})
    for stage in ("pretrain/kd", "distill/kd", "evaluate/kd", "export/kd", "benchmark/kd"):
        assert {"my_nets/small.py", "my_nets/blocks.py"} <= listed[stage], stage
    assert not any(file.startswith("my_nets") for file in listed["teacher/big"])


def test_templates_are_code_and_notes_are_not() -> None:
    assert {"pipeline/report/report.html", "pipeline/report/report.css"} <= closure("stages.report")
    assert not any(file.endswith((".md", ".pyc")) for file in closure("stages.report"))


def test_sha256sum_checks_the_listing(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text(listing(closure("stages.evaluate")))
    subprocess.run(["sha256sum", "--check", "--quiet", str(tmp_path / "listed")], cwd=ROOT, check=True)


def test_an_import_for_types_only_is_not_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typing_only = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import two\n\n"
    write_modules(
        tmp_path,
        {
            "one.py": f"{typing_only}def late():\n    import three",
            "two.py": "",
            "three.py": "import json, one",
        },
    )
    assert closure("one") == {"one.py", "three.py"}


def test_training_does_not_depend_on_the_report_or_the_tracking(params: Params) -> None:
    """So a half-finished training goes on after an edit of them."""
    knowledge = {"atoms": {"teacher": "big", "method": {"name": "srm"}}}
    listed = changed(params, knowledge=knowledge)
    training = [name for name in listed if name.startswith(TRAINING)]
    assert {f"{name.partition('/')[0]}/" for name in training} == set(TRAINING)
    later = ("pipeline/report", "pipeline/track", "pipeline/evaluation", "pipeline/export", "pipeline/deploy")
    for name in training:
        found = {file for file in listed[name] if file.startswith(later)}
        assert found <= {"pipeline/deploy/__init__.py", "pipeline/deploy/trouble.py"}, name  # errors in words


def test_training_depends_on_the_loop_and_the_data(params: Params) -> None:
    """So an unfinished training starts again after an edit of them."""
    needed = {
        "pipeline/training/loop.py",
        "pipeline/data/batches.py",
        "pipeline/data/augment.py",
        "pipeline/nets/resnet.py",
        "pipeline/taps/tapped.py",
        "pipeline/runs/context.py",
    }
    for name, files in changed(params).items():
        if name.startswith(TRAINING):
            assert needed <= files, name
