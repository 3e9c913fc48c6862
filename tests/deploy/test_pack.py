import subprocess
import sys
from pathlib import Path

from PIL import Image

from pipeline.deploy.__main__ import main
from pipeline.deploy.pack import pack

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


def test_equal_code_gives_equal_bytes(tmp_path: Path) -> None:
    pack(tmp_path / "a.pyz")
    pack(tmp_path / "b.pyz")
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.pyz").read_bytes()
