from pathlib import Path

import numpy as np
import pytest

from experiments import read_speed
from experiments.read_speed import WAYS, Mapped, measure, plain, table, training, write_noise
from pipeline.data.images import ImageFile


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_speed, "BATCH", 4)
    monkeypatch.setattr(read_speed, "BATCHES", 3)


def test_the_table_has_a_row_for_each_case(tmp_path: Path) -> None:
    rows = table(tmp_path, count=100, size=32, rounds=2).splitlines()[4:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["rows"] * 2 + ["batches of training"] * 2
    assert [row.split(" | ")[1] for row in rows] == ["cold", "warm"] * 2
    assert all(row.count("[") == 2 for row in rows)


def test_both_ways_read_the_same(tmp_path: Path) -> None:
    write_noise(tmp_path, 50, 16)
    old, new = Mapped(tmp_path), ImageFile(tmp_path)
    rows = np.array([3, 49, 3, 0])
    assert np.array_equal(old[rows], new[rows])
    for work in (plain, training):
        for images in WAYS:
            found = measure(images, work, tmp_path, 0, cold=True)
            assert found["wall"] > 0 < found["cpu"]
