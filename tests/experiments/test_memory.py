import mmap
from pathlib import Path

import numpy as np
import psutil
import pytest

from experiments import memory
from experiments.memory import PARTS, Memory, Work

SMALL = Work(epochs=PARTS, images=200, pixels=8, photographs=10, requests=10)


def test_memory_is_looked_at_after_each_fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PHOTOGRAPH", (40, 30))
    looks = iter(range(1, 100))
    monkeypatch.setattr(memory, "memory_mb", lambda process="self": Memory(next(looks), 0))
    assert [look.own for look in memory.training(SMALL, tmp_path)] == [1, 2, 3, 4, 5]
    assert [look.own for look in memory.decoding(SMALL, tmp_path)] == [6, 7, 8, 9, 10]


def test_the_memory_of_a_process_is_that_of_the_system() -> None:
    assert sum(memory.memory_mb()) == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.02)


def test_pages_of_a_file_are_not_the_own_memory(tmp_path: Path) -> None:
    before = memory.memory_mb()
    own = np.frombuffer(mmap.mmap(-1, 30_000_000), np.uint8)  # numpy might use memory again that it has
    own[:] = 1
    np.save(tmp_path / "file.npy", own)
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    assert mapped.sum() == len(own)
    after = memory.memory_mb()
    assert after.own - before.own == pytest.approx(30, abs=3)
    assert after.files - before.files == pytest.approx(30, abs=3)


def test_a_row_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "in_a_process", lambda case, work: [Memory(len(case), 3.6)] * PARTS)
    *_, of_training, of_decoding = memory.table(SMALL, None).splitlines()
    assert of_training == "| 200 images of 8 pixels, 5 epochs of kd | 8 + 4 | 8 + 4 | 8 + 4 | 8 + 4 | 8 + 4 |"
    assert of_decoding.startswith("| 10 photographs of 1600 x 1200 decoded |")
