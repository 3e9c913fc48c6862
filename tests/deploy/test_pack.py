import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.deploy.__main__ import main
from pipeline.deploy.pack import pack
from pipeline.deploy.program import TO_SERVE, missing

BLOCKED = """
import runpy, sys
blocked = "torch pydantic onnx torchvision sklearn mlflow yaml safetensors starlette"
for name in blocked.split():
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_file_runs_without_this_project_and_its_other_packages(bundle: Path, tmp_path: Path) -> None:
    assert main(["pack", "--out", str(tmp_path / "predictor.pyz")]) == 0
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    for arguments, words in (
        (["predict", str(bundle), "a.png"], "a.png"),
        (["doctor"], "CPUExecutionProvider works here"),
        (["benchmark", str(bundle), "--rounds", "1", "--seconds", "0"], "int8"),
    ):
        command = [sys.executable, "-I", "-c", BLOCKED, "predictor.pyz", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_an_installed_project_can_serve() -> None:
    """Only a predictor that was taken along needs more."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    installed = {re.split(r"[><=;\[ ]", needed)[0] for needed in project["dependencies"]}
    assert {*TO_SERVE.split()} <= installed


def run(file: Path, *arguments: str, blocked: str = "") -> subprocess.CompletedProcess[str]:
    """What the file does where one module is missing."""
    code = BLOCKED.replace("torch pydantic", f"torch pydantic {blocked}")
    command = [sys.executable, "-I", "-c", code, file.name, *arguments]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True)


def test_the_file_calls_itself_by_its_name_and_cannot_pack(tmp_path: Path) -> None:
    pack(tmp_path / "my birds.pyz")
    usage = run(tmp_path / "my birds.pyz", "--help").stdout
    assert usage.startswith("usage: python 'my birds.pyz' [-h] COMMAND")
    assert "predict" in usage
    assert not re.search("pipeline|pack ", usage)
    assert "pack" in subprocess.check_output([sys.executable, "-m", "pipeline.deploy", "--help"], text=True)
    refused = run(tmp_path / "my birds.pyz", "pack")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    with zipfile.ZipFile(tmp_path / "my birds.pyz") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert "pipeline/deploy/pack.py" not in texts
    # help and messages take the name from program.py
    named = {name for name, text in texts.items() if re.search(r"`handdown deploy \w", text)}
    assert named == {"pipeline/deploy/browser_page.py"}  # in a docstring


@pytest.mark.parametrize(
    ("blocked", "command", "packages"),
    [
        ("numpy", "predict", "numpy 'pillow<13' onnxruntime"),
        ("PIL", "predict", "numpy 'pillow<13' onnxruntime"),
        ("onnxruntime", "verify", "numpy 'pillow<13' onnxruntime"),
        ("python_multipart", "serve", "starlette uvicorn python-multipart"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(
    blocked: str, command: str, packages: str, bundle: Path, tmp_path: Path
) -> None:
    pack(tmp_path / "predictor.pyz")
    pictures = ["a.png"] if command == "predict" else []
    done = run(tmp_path / "predictor.pyz", command, str(bundle), *pictures, blocked=blocked)
    assert done.returncode == 2
    assert done.stderr.endswith(f"Install what is needed: pip install {packages}\n")
    assert done.stderr.count("\n") == 1


def test_another_missing_module_is_for_the_doctor() -> None:
    error = ModuleNotFoundError("No module named 'foo'", name="foo")
    assert missing(error) == "No module named 'foo'. Run `handdown deploy doctor`."


def test_equal_code_gives_equal_bytes(tmp_path: Path) -> None:
    pack(tmp_path / "a.pyz")
    pack(tmp_path / "b.pyz")
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.pyz").read_bytes()
