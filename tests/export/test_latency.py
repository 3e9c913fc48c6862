import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scratch_project import heeding_ctrl_c

from pipeline.export import latency, worker
from pipeline.settings import InputError

IMAGE = np.zeros((1, 16, 16, 3), np.uint8)


def test_one_image_is_timed_on_one_thread_in_a_process_for_each_file(
    monkeypatch: pytest.MonkeyPatch, exported: Any
) -> None:
    asked: list[tuple[Any, ...]] = []
    real, turns = latency.fresh, latency.take_turns

    def fresh(runtime: str, file: Path, threads: int, images: Path) -> Any:
        asked.append((runtime, file.name, threads, np.load(images).shape))
        return real(runtime, file, threads, images)

    def take_turns(processes: Any, batch: int, seconds: float) -> Any:
        asked.append((sorted(processes), batch))
        return turns(processes, batch, 0.01)

    monkeypatch.setattr(latency, "fresh", fresh)
    monkeypatch.setattr(latency, "take_turns", take_turns)
    files = {name: exported.out / f"student{end}.onnx" for name, end in (("onnx", ""), ("int8", ".int8"))}
    found = latency.measure(files, IMAGE)
    assert found.keys() == {"onnx", "int8"}
    assert all(0 < took < 1000 for took in found.values())
    assert asked == [
        ("onnx", "student.onnx", 1, IMAGE.shape),
        ("onnx", "student.int8.onnx", 1, IMAGE.shape),
        (["int8", "onnx"], 1),
    ]


STOPPED = """
import sys, time
from pathlib import Path
from pipeline.export.latency import fresh
file, images = map(Path, sys.argv[1:])
with fresh("onnx", file, 1, images) as process:
    process.questions.write("{}\\n")
    process.questions.flush()
    try:
        print("asked", flush=True)
        for _ in range(600):
            time.sleep(0.1)  # not long at once: a signal just before a sleep does not end it
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 1.0])
def test_what_measures_ends_in_silence_with_what_asked_it(
    number: signal.Signals, seconds: float, exported: Any, tmp_path: Path
) -> None:
    """At Ctrl-C a terminal sends the signal to all processes of its group."""
    np.save(tmp_path / "images.npy", IMAGE)
    asking = subprocess.Popen(
        [sys.executable, "-c", STOPPED, exported.out / "student.onnx", tmp_path / "images.npy"],
        cwd=latency.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=heeding_ctrl_c,
    )
    assert asking.stdout is not None
    assert asking.stdout.readline() == "asked\n"
    time.sleep(seconds)
    os.killpg(asking.pid, number)
    said, errors = asking.communicate(timeout=60)  # until nothing holds these pipes
    assert (said, errors) == ("Stopped.\n" if number == signal.SIGINT else "", "")


def test_a_process_that_has_ended_is_said_in_a_sentence(tmp_path: Path) -> None:
    """Its pipe is broken, and what was not sent is there when it is closed."""
    np.save(tmp_path / "images.npy", IMAGE)
    with (
        pytest.raises(InputError, match=r"measures nothing\.onnx ended without an answer"),
        latency.fresh("no_such_runtime", tmp_path / "nothing.onnx", 1, tmp_path / "images.npy") as process,
    ):
        assert process.answers.read() == ""  # until it has ended
        process.ask({})


def test_the_number_is_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        memory_mb = 0.0

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *reason: object) -> None:
            return None

        def ask(self, question: dict[str, Any]) -> dict[str, Any]:
            return {"wall": [0.001, 0.002, 0.9], "cpu": [0.001] * 3, "memory_mb": 1.0}

    monkeypatch.setattr(latency, "fresh", lambda *arguments: Fake())
    assert latency.measure({"onnx": Path("student.onnx")}, IMAGE) == {"onnx": 2.0}
    assert worker.FEWEST == 3


def test_a_file_is_measured_for_the_whole_time() -> None:
    asked = []

    class Fast:
        memory_mb = 0.0

        def ask(self, question: object) -> dict[str, object]:
            asked.append(question)
            return {"wall": [0.001] * worker.FEWEST, "cpu": [0.001] * worker.FEWEST, "memory_mb": 1.0}

    seconds = 0.0035 * worker.FEWEST
    taken = latency.take_turns({"a": cast(latency.Process, Fast())}, 1, seconds)["a"]
    assert len(asked) == 4
    assert sum(taken.wall) >= seconds
