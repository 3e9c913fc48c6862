import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.deploy import benchmark_bundle
from pipeline.deploy.__main__ import main
from pipeline.deploy.read_bundle import BundleError

ROOT = Path(__file__).parents[2]


def test_the_table_has_a_line_for_each_format_and_batch(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", str(bundle), "--rounds", "1", "--seconds", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["onnx", "32", "int8", "32"]
    assert "1 thread(s): medians of 1" in lines[0]


def test_formats_take_turns(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    measured = {"import_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0, "memory_mb": 1.0}
    times = {str(batch): {"median_ms": 1.0, "p95_ms": 1.0, "cpu_ms": 1.0} for batch in (1, 32)}

    def pretend(folder: Path, format: str, **rest: object) -> dict[str, object]:
        seen.append(format)
        return {**measured, "batches": times}

    monkeypatch.setattr(benchmark_bundle, "_in_a_process", pretend)
    benchmark_bundle.command(bundle, threads=1, rounds=2, seconds=1)
    assert seen == ["onnx", "int8", "onnx", "int8"]


def test_an_error_in_the_process_is_reported(own: Path) -> None:
    (own / "student.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"measuring onnx failed: .*is not the file that was exported"):
        benchmark_bundle.command(own, threads=1, rounds=1, seconds=0)


def test_the_process_measures_what_it_says(bundle: Path) -> None:
    found = benchmark_bundle._in_a_process(bundle, "onnx", threads=1, batches=[1, 4], seconds=0)
    assert {"import_ms", "load_ms", "first_ms"} < found.keys()
    assert found["memory_mb"] > 10
    assert found["batches"].keys() == {"1", "4"}
    for times in found["batches"].values():
        assert 0 < times["median_ms"] <= times["p95_ms"]
        assert times["runs"] == 5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count it differently")
def test_peak_memory_does_not_count_the_parent() -> None:
    """A small process that a large one starts is small."""
    code = "from pipeline.deploy.benchmark_bundle import peak_memory; print(peak_memory())"
    large = (
        f"import subprocess, sys; held = b'x' * 300_000_000; subprocess.run([sys.executable, '-c', {code!r}])"
    )
    done = subprocess.run([sys.executable, "-c", large], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 100
