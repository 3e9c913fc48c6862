import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.export import worker

ROOT = Path(__file__).parents[2]


def test_serve_warms_up_once_and_answers_each_question() -> None:
    seen: list[int] = []

    def opening() -> worker.Opened:
        def run(images: np.ndarray) -> list[np.ndarray]:
            seen.append(len(images))
            return [images[:, 0, 0]]

        return run, {"size_mb": 1.5}

    questions = io.StringIO('{}\n{"batch": 2, "seconds": 0}\n{"batch": 2, "seconds": 0}\n')
    answers = io.StringIO()
    worker.serve(opening, np.zeros((3, 1, 1, 3), np.uint8), questions, answers)
    first, *others = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert (first["size_mb"], first["logits"]) == (1.5, [0, 0, 0])
    assert seen == [1, 2, 2, 2, 2]  # the first answer, two calls to warm up, and two turns
    assert [len(other["wall"]) for other in others] == [1, 1]


def test_a_turn_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 0.0, "cpu": 0.0}

    def run(images: np.ndarray) -> list[np.ndarray]:
        now["wall"] += 0.3
        now["cpu"] += 0.1
        return [images]

    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["cpu"])
    wall, cpu = worker.turn(run, np.zeros(1), 1.0)
    assert wall == pytest.approx([0.3] * 4)
    assert cpu == pytest.approx([0.1] * 4)
    assert len(worker.turn(run, np.zeros(1), 0.0)[0]) == 1  # a slow variant has its turn too


def test_the_worker_imports_neither_torch_nor_pydantic() -> None:
    loaded = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import sys, pipeline.export.worker; print({{'torch', 'pydantic', 'onnx'}} & {loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
