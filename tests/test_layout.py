"""Who may import whom, what an import costs, and the form of stages. Violations are listed, all at once."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.project.dependencies import ROOT, imported_by

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("pipeline", "stages")
    for path in (ROOT / folder).rglob("*.py")
)
MATHS = {"settings", "functional", "taps"}
# room -> the rooms it may import, besides itself: always from the top of this list to rooms above it
ALLOWED: dict[str, set[str]] = {
    "settings": set(),
    "files": set(),
    "functional": set(),
    "device": {"settings"},
    "taps": {"functional", "settings"},
    "records": {"files", "settings"},
    "data": {"files", *MATHS},
    "methods": MATHS,
    "deploy": {"data"},
    "nets": {"deploy", "files", *MATHS},
    "checkpoint": {"files", "nets", "records", "settings"},
    "training": {"checkpoint", "data", "device", "methods", "records", *MATHS},
    "export": {"checkpoint", "data", "deploy", "files", "methods", "records", *MATHS},
    "benchmark": {"deploy", "device", "export", "files", "functional", "records", "settings"},
    "runs": {"checkpoint", "data", "device", "files", "methods", "nets", "records", "training", *MATHS},
    "evaluation": {"checkpoint", "data", "device", "export", "files", "records", *MATHS},
    "analysis": {"checkpoint", "data", "files", "records", "runs", *MATHS},
    "report": {"analysis", "data", "evaluation", "files", "records", "settings"},
    "track": {"deploy", "files", "records", "report", "settings"},
    "params": {
        "benchmark",
        "data",
        "export",
        "functional",
        "methods",
        "nets",
        "runs",
        "settings",
        "training",
    },
    "project": {
        "analysis",
        "data",
        "deploy",
        "files",
        "functional",
        "nets",
        "params",
        "records",
        "runs",
        "settings",
        "track",
    },
}
KNOW_MLFLOW, KNOW_DVC = {"track"}, {"project"}
# module -> packages that importing it must not bring in
COSTS = {
    "pipeline": {"torch", "mlflow", "numpy"},
    "pipeline.data.decode": {"torch", "mlflow", "pandas"},
    "pipeline.report.write_report": {"torch", "mlflow", "matplotlib", "sklearn"},
    "pipeline.track": {"torch", "mlflow"},
    "pipeline.project.__main__": {"torch", "mlflow", "dvc"},
    "pipeline.deploy.__main__": {"torch", "pydantic", "onnx", "onnxruntime", "starlette"},
    "pipeline.runs.student": {"mlflow", "dvc", "torchvision", "sklearn", "onnx"},
    "stages.installed": {"torch", "numpy", "pydantic", "yaml"},  # it runs at every start of the graph
    "stages.evaluate": {"mlflow", "dvc", "torchvision", "sklearn", "accelerate"},
}
STAGES_WITHOUT_TORCH = {"installed", "prepare", "report", "track"}
LOADED = """
import json, sys
wanted = json.loads(sys.argv[1])
__import__(wanted)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

WITHOUT_TORCH = """
import importlib, json, sys
sys.modules["torch"] = None  # so that its import fails
can = []
for name in sys.argv[1:]:
    for module in [each for each in sys.modules if each.partition(".")[0] in ("pipeline", "stages")]:
        del sys.modules[module]
    try:
        importlib.import_module(f"stages.{name}")
        can.append(name)
    except ImportError as error:
        if error.name.partition(".")[0] != "torch":
            raise
print(json.dumps(can))
"""


def room(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return parts[0] if parts[0] == "stages" else parts[1] if len(parts) > 1 else ""


def test_rooms_import_only_rooms_below_them() -> None:
    wrong = []
    for file in FILES:
        own = room(file)
        if own in ("stages", "__init__"):
            continue
        others = {room(imported) for imported in imported_by(file)} - {own, "__init__"}
        wrong += [f"{file} imports {other}" for other in sorted(others - ALLOWED[own])]
    assert not wrong, wrong


def test_the_rules_have_no_circle_and_no_room_that_is_gone() -> None:
    order = list(ALLOWED)
    assert set(order) == {room(file) for file in FILES} - {"stages", "__init__"}
    backwards = [f"{own} may import {other}" for own, others in ALLOWED.items() for other in others if (
        order.index(other) >= order.index(own))]  # fmt: skip
    assert not backwards, backwards
    assert len(order) + len(("stages", "experiments", "my_nets")) <= 24


def test_no_module_shadows_the_standard_library_or_another_room() -> None:
    wrong = [
        file for file in FILES if Path(file).stem in sys.stdlib_module_names and room(file) == Path(file).stem
    ]
    assert not wrong, wrong


def test_files_import_one_another_in_no_circle() -> None:
    files = {file for file in FILES if not file.endswith("__init__.py")}
    imports = {file: imported_by(file) & files for file in files}
    while leaves := [file for file, needs in imports.items() if not needs & set(imports)]:
        for file in leaves:
            del imports[file]
    assert not imports  # what is left imports one another, or what does


def test_methods_import_no_other_method() -> None:
    """A run depends on its own method's file (dvc.yaml). What methods share is in files with underscores."""
    wrong = []
    for file in FILES:
        if room(file) == "methods" and not Path(file).stem.startswith("_"):
            others = [other for other in imported_by(file) if room(other) == "methods"]
            wrong += [f"{file} imports {other}" for other in others if not Path(other).stem.startswith("_")]
    assert not wrong, wrong


def test_one_room_knows_mlflow_and_one_knows_dvc() -> None:
    wrong = []
    for file in FILES:
        text = (ROOT / file).read_text()
        for package, rooms in (("mlflow", KNOW_MLFLOW), ("dvc", KNOW_DVC)):
            if room(file) not in rooms and (f"import {package}" in text or f"from {package}" in text):
                wrong.append(f"{file} imports {package}")
        if room(file) not in KNOW_DVC and "project.dvc" in text:
            wrong.append(f"{file} calls dvc")
    assert not wrong, wrong


def test_stages_are_thin() -> None:
    stages = sorted((ROOT / "stages").glob("[!_]*.py"))
    assert len(stages) == 15
    wrong = [stage.name for stage in stages if len(stage.read_text().splitlines()) >= 40]
    assert not wrong, wrong


def test_stages_that_do_not_compute_start_without_torch() -> None:
    """Its import takes most of a second. What stage `prepare` needs of it, it imports when it decodes."""
    names = sorted(stage.stem for stage in (ROOT / "stages").glob("[!_]*.py"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert set(json.loads(done.stdout)) == STAGES_WITHOUT_TORCH


def test_only_stages_and_what_drives_a_project_see_params() -> None:
    wrong = [
        file
        for file in FILES
        if room(file) not in ("stages", "project", "params") and "pipeline/params.py" in imported_by(file)
    ]
    assert not wrong, wrong


def test_an_import_brings_in_no_more_than_it_needs() -> None:
    wrong = []
    running = {
        module: subprocess.Popen(
            [sys.executable, "-c", LOADED, json.dumps(module)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for module in COSTS
    }
    for module, process in running.items():
        printed, _ = process.communicate()
        assert process.returncode == 0, module
        wrong += [f"{module} imports {package}" for package in COSTS[module] & set(json.loads(printed))]
    assert not wrong, wrong
