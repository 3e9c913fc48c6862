import subprocess
import sys
from pathlib import Path

from PIL import Image

from pipeline.deploy.__main__ import main
from pipeline.deploy.pack import pack

BLOCKED = """
import runpy, sys
for name in ("torch", "pydantic", "onnx", "torchvision", "sklearn", "mlflow", "yaml", "safetensors", "starlette"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_one_file_does_it_all_where_neither_this_project_nor_anything_else_is(bundle: Path, tmp_path: Path) -> None:
    assert main(["pack", "--out", str(tmp_path / "predictor.pyz")]) == 0
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    for arguments, said in (
        (["predict", str(bundle), "a.png"], "a.png"),
        (["doctor"], "CPUExecutionProvider works here"),
        (["bench", str(bundle), "--rounds", "1", "--seconds", "0"], "int8"),
    ):
        command = [sys.executable, "-I", "-c", BLOCKED, "predictor.pyz", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_it_is_reproducible(tmp_path: Path) -> None:
    pack(tmp_path / "a.pyz")
    pack(tmp_path / "b.pyz")
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.pyz").read_bytes()
