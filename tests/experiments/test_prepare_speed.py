"""The script that measures stage prepare."""

from pathlib import Path

import pytest

from experiments import prepare_speed
from pipeline.data.sources import DataConfig


def test_the_table_has_a_line_for_one_core_and_one_for_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_speed, "COUNT", 30)
    prepare_speed.save_photographs(tmp_path)
    cfg = DataConfig(source="folder", root=str(tmp_path), size=32)
    *_, one, two = prepare_speed.table(cfg, rounds=1).splitlines()
    for cores, line in (("1", one), ("2", two)):
        first, _, _, peak, before, disk, stored, rounds = line.strip("| ").split(" | ")
        assert (first, rounds) == (cores, "1")
        assert float(peak.split(" ")[0]) >= float(before) > 10
        assert float(disk) >= 3
        assert stored == "3"  # 32 x 32 x 3 bytes, times 1,000
