from pathlib import Path

import pytest

from pipeline.deploy import bench
from pipeline.deploy.__main__ import main
from pipeline.deploy.bundle import BundleError


def test_a_line_for_each_format_and_batch(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--rounds", "1", "--seconds", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["onnx", "32", "int8", "32"]
    assert "1 thread(s), medians of 1" in lines[0]


def test_formats_take_turns_in_processes_of_their_own(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    measured = {"import_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0, "memory_mb": 1.0}
    times = {str(batch): {"median_ms": 1.0, "p95_ms": 1.0, "cpu_ms": 1.0} for batch in (1, 32)}

    def pretend(folder: Path, format: str, **rest: object) -> dict[str, object]:
        seen.append(format)
        return {**measured, "batches": times}

    monkeypatch.setattr(bench, "_in_a_process", pretend)
    bench.command(bundle, threads=1, rounds=2, seconds=1)
    assert seen == ["onnx", "int8", "onnx", "int8"]


def test_what_fails_in_the_process_is_told(own: Path) -> None:
    (own / "student.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"measuring onnx failed: .*isn't the file that was exported"):
        bench.command(own, threads=1, rounds=1, seconds=0)
