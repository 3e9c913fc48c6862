"""Who may import whom, and what an import costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.code import ROOT, imported_by

FILES = sorted(str(path.relative_to(ROOT)) for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py"))
BASE = {"inputs", "functional", "taps"}
# room -> the rooms it may import, besides itself
ALLOWED = {
    "inputs": set(),
    "functional": set(),
    "taps": {"inputs"},
    "checkpoint": {"inputs"},
    "code": set(),
    "energy": set(),
    "locks": set(),
    "live": {"checkpoint", "locks", "record"},
    "record": {"checkpoint", "energy"},
    "nets": BASE,
    "data": BASE,
    "margin": {"taps"},
    "neighbours": set(),
    "methods": BASE | {"margin", "neighbours"},
    "evaluate": {"inputs"},
    "analysis": BASE | {"checkpoint", "config", "data", "methods", "record", "runs", "saved"},
    "deploy": {"data"},
    "timing": set(),
    "export": BASE | {"deploy"},
    "benchmark": BASE | {"export", "timing"},
    "meters": {"inputs", "methods"},
    "train": BASE | {"methods", "checkpoint", "meters"},
    "saved": {"inputs", "checkpoint", "nets"},
    "combined": {"methods", "taps"},
    "balance": {"inputs", "config", "data", "methods", "runs", "taps", "train"},
    "overview": {"methods", "taps"},
    "config": {"inputs", "methods", "nets", "data", "train", "export", "benchmark"},
    "runs": BASE
    | {"checkpoint", "code", "combined", "config", "overview", "data", "live", "locks", "methods", "nets", "record", "saved", "train"},
    "cross_task": BASE | {"data", "evaluate", "saved"},
    "predictions": {"inputs", "checkpoint", "evaluate"},
    "report": {"inputs", "analysis", "checkpoint", "record", "evaluate", "predictions"},
    "track": {"inputs", "checkpoint", "live", "locks", "record", "report"},
    "registry": {"inputs", "deploy", "record", "report", "track"},
}


def room(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return parts[0] if parts[0] == "stages" else parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_the_rooms_below_it(file: str) -> None:
    if (own := room(file)) in ("stages", "__init__"):
        return
    others = {room(imported) for imported in imported_by(file)} - {own, "__init__"}
    assert others <= ALLOWED[own], f"{file} imports {sorted(others - ALLOWED[own])}"


@pytest.mark.parametrize("file", [file for file in FILES if room(file) == "methods" and not file.endswith(("base.py", "__init__.py"))])
def test_a_method_imports_no_other(file: str) -> None:
    """A run depends on its own method's file alone (dvc.yaml), so what methods share is in base.py and functional.py."""
    assert {imported for imported in imported_by(file) if room(imported) == "methods"} <= {
        "pipeline/methods/base.py",
        "pipeline/methods/__init__.py",
    }


def test_only_the_tracking_rooms_know_mlflow_and_nobody_dvc() -> None:
    for file in FILES:
        text = (ROOT / file).read_text()
        assert room(file) in ("track", "registry") or ("import mlflow" not in text and "from mlflow" not in text), file
        assert "import dvc" not in text, file
        assert "from dvc" not in text, file


@pytest.mark.parametrize("stage", sorted((ROOT / "stages").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_stage_is_thin(stage: Path) -> None:
    assert len(stage.read_text().splitlines()) <= 60, stage


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("pipeline", {"torch", "mlflow", "numpy"}),
        ("pipeline.data.decode", {"torch", "mlflow", "pandas"}),
        ("pipeline.report", {"torch", "mlflow", "matplotlib", "sklearn"}),
        ("pipeline.track", {"torch", "mlflow"}),
        ("pipeline.deploy.__main__", {"torch", "pydantic", "onnx", "onnxruntime", "starlette"}),
        ("pipeline.runs", {"mlflow", "dvc", "torchvision", "sklearn", "onnx"}),
        ("stages.evaluate", {"mlflow", "dvc", "torchvision", "sklearn", "accelerate"}),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {unwanted!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
