from pathlib import Path

import psutil
import pytest

from experiments import memory
from experiments.memory import PARTS, Work

SMALL = Work(epochs=PARTS, images=200, pixels=8, photographs=10, requests=10)


def test_memory_is_looked_at_after_each_fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PHOTOGRAPH", (40, 30))
    looks = iter(range(1, 100))
    monkeypatch.setattr(memory, "rss_mb", lambda process="self": float(next(looks)))
    assert memory.training(SMALL, tmp_path) == [1, 2, 3, 4, 5]
    assert memory.decoding(SMALL, tmp_path) == [6, 7, 8, 9, 10]


def test_the_memory_of_a_process_is_that_of_the_system() -> None:
    assert memory.rss_mb() == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.02)


def test_a_row_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "in_a_process", lambda case, work: [float(len(case))] * PARTS)
    *_, of_training, of_decoding = memory.table(SMALL, None).splitlines()
    assert of_training == "| 200 images of 8 pixels, 5 epochs of kd | 8 | 8 | 8 | 8 | 8 |"
    assert of_decoding.startswith("| 10 photographs of 1600 x 1200 decoded |")
