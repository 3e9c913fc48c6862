import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from pipeline.deploy import doctor
from pipeline.deploy.__main__ import main

ROOT = Path(__file__).parents[2]


def bad(provider: str = "cpu") -> list[str]:
    return [finding.says for finding in doctor.examine(provider) if finding.bad]


def package(name: str, *files: str) -> Any:
    return SimpleNamespace(name=name, version="1.0", files=files)


def test_this_machine_can_predict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "CPUExecutionProvider works here" in out
    assert "EP Error" not in out


@pytest.mark.parametrize(("module", "package"), [("numpy", "numpy"), ("PIL", "'pillow<13'")])
def test_a_missing_package_is_named(module: str, package: str) -> None:
    run = "runpy.run_module('pipeline.deploy', run_name='__main__')"
    code = f"import runpy, sys; sys.modules[{module!r}] = None; {run}"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    says = f"BAD A package that is needed cannot be imported. Install it: pip install {package}\n"
    assert says in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("version", "warned"), [("12.3.0", False), ("13.0.0", True)])
def test_a_pillow_that_rounds_differently_is_bad(
    version: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor, "distributions", lambda: [SimpleNamespace(name="pillow", version=version, files=())]
    )
    assert any(f"Pillow {version} rounds differently" in says for says in bad()) == warned


def test_cuda_that_does_not_work_is_bad_if_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    if (
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
        or Path("/dev/nvidiactl").exists()
    ):
        pytest.skip("needs an onnxruntime built with CUDA, and no GPU")
    assert main(["doctor", "--provider", "cuda"]) == 1
    out, err = capfd.readouterr()
    assert "BAD CUDAExecutionProvider is listed, but does not work here (lib" in out
    assert err == ""


def test_an_unknown_provider_is_bad() -> None:
    assert any("no 'cudda'" in says for says in bad("cudda"))


def test_two_wheels_in_one_folder_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        package("onnxruntime", "onnxruntime/__init__.py"),
        package("onnxruntime-gpu", "onnxruntime/__init__.py"),
        package("onnxruntime-tools", "x.py"),
    ]
    monkeypatch.setattr(doctor, "distributions", lambda: both)
    assert any("onnxruntime 1.0, onnxruntime-gpu 1.0 all write into one folder" in says for says in bad())
    monkeypatch.setattr(doctor, "distributions", lambda: both[1:])
    assert not bad()


def test_an_empty_or_missing_onnxruntime_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace())
    assert any("empty package" in says for says in bad())

    def missing(name: str) -> None:
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert any("cannot be imported" in says for says in bad())


@pytest.mark.parametrize(
    ("flags", "warned"), [("sse avx2", True), ("avx2 avx512_vnni", False), ("avx_vnni", False)]
)
def test_a_cpu_without_vnni_is_noted(tmp_path: Path, flags: str, warned: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n")
    found = list(doctor._cpu(tmp_path / "cpuinfo"))
    assert found[0].says.startswith("A CPU, ")
    assert any("VNNI" in finding.says for finding in found) == warned
    assert len(list(doctor._cpu(tmp_path / "none"))) == 1
