"""Which files a stage's code consists of."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import code, config
from pipeline.code import ROOT, closure, listing
from pipeline.config import Params
from stages.check import stages

STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[!_]*.py") if path.stem not in ("entry", "check", "balance"))
LOADED = """
import pipeline, runpy, sys, unittest.mock
pipeline.config = sys.modules["pipeline.config"] = unittest.mock.MagicMock()
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
    return config.load(ROOT / "params.yaml")


def changed(params: Params, **sections: object) -> dict[str, set[str]]:
    """The stages of the project with these sections instead, and the files of each."""
    return {name: closure(*modules) for name, modules in stages(Params.model_validate(params.model_dump() | sections))}


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_the_project_is_loaded_that_is_not_listed(stage: str) -> None:
    """Without config, whose imports only check params.yaml."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(stage=stage)], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {
        Path(file).relative_to(ROOT).as_posix()
        for file in done.stdout.split("\n")
        if file.startswith((f"{ROOT}/pipeline", f"{ROOT}/stages"))
    }
    listed = closure(f"stages.{stage}")
    assert loaded
    assert loaded <= listed


def test_a_run_has_the_code_of_its_own_method_and_partner_alone(params: Params) -> None:
    runs = {"mine": {"teacher": "big", "student": "small", "method": {"name": "semckd", "combine": {"name": "crd"}}}}
    listed = changed(params, runs=runs)
    for stage in ("pretrain/mine", "distill/mine"):
        methods = {Path(file).stem for file in listed[stage] if file.startswith("pipeline/methods/")}
        assert methods == {"__init__", "base", "semckd", "crd"}
    assert not any(file.startswith("pipeline/methods/") for file in listed["evaluate/mine"])


def test_what_a_method_imports_belongs_to_its_runs(params: Params) -> None:
    runs = {name: {"teacher": "big", "student": "small", "method": {"name": name}} for name in ("pkt", "kd")}
    listed = changed(params, runs=runs)
    assert "pipeline/neighbours.py" in listed["distill/pkt"]
    assert "pipeline/neighbours.py" not in listed["distill/kd"]


def test_a_network_of_the_users_own_is_listed_with_what_it_imports(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, text in {"my_nets/__init__.py": "", "my_nets/small.py": "from my_nets import blocks", "my_nets/blocks.py": ""}.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    listed = changed(params, students={"small": {"net": "my_nets.small:make"}})
    for stage in ("pretrain/kd", "distill/kd", "evaluate/kd", "export/kd", "benchmark/kd"):
        assert {"my_nets/small.py", "my_nets/blocks.py"} <= listed[stage], stage
    assert not any(file.startswith("my_nets") for file in listed["teacher/big"])


def test_templates_belong_to_the_code_and_notes_do_not() -> None:
    assert {"pipeline/report/page.html", "pipeline/report/page.css"} <= closure("stages.report")
    assert not any(file.endswith((".md", ".pyc")) for file in closure("stages.report"))


def test_the_listing_is_what_sha256sum_checks(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text(listing(closure("stages.evaluate")))
    subprocess.run(["sha256sum", "--check", "--quiet", str(tmp_path / "listed")], cwd=ROOT, check=True)


def test_types_alone_bring_nothing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "ROOT", tmp_path)
    for file, text in {
        "one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import two\n\ndef late():\n    import three",
        "two.py": "",
        "three.py": "import json, one",
    }.items():
        (tmp_path / file).write_text(text)
    assert closure("one") == {"one.py", "three.py"}


def test_the_library_s_hash_follows_any_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pipeline"
    (package / "deep").mkdir(parents=True)
    (package / "deep" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(code, "ROOT", tmp_path)
    monkeypatch.setattr(code, "__file__", str(package / "code.py"))
    before = code.library()
    (package / "notes.txt").write_text("not code")
    assert code.library() == before
    (package / "deep" / "a.py").write_text("a = 2\n")
    changed = code.library()
    (package / "deep" / "a.py").rename(package / "deep" / "b.py")
    assert len({before, changed, code.library()}) == 3
