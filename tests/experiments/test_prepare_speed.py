"""The script that measures stage prepare."""

from pathlib import Path

import pytest

from experiments import prepare_speed
from pipeline.data.sources import DataConfig


def test_the_table_has_a_line_for_each_form_and_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_speed, "COUNT", 30)
    prepare_speed.save_photographs(tmp_path)
    cfg = DataConfig(source="folder", root=str(tmp_path), size=32)
    *_, one, two, packed, _ = prepare_speed.table(cfg, rounds=1).splitlines()
    for form, cores, line in (("pixels", "1", one), ("pixels", "2", two), ("jpeg", "1", packed)):
        kept_as, first, _, _, peak, before, disk, stored, reading, rounds = line.strip("| ").split(" | ")
        assert (kept_as, first, rounds) == (form, cores, "1")
        assert float(reading.split(" ")[0]) >= 0
        assert float(peak.split(" ")[0].replace(",", "")) >= float(before) > 10
        assert float(disk) >= float(stored)
        assert (stored == "3") == (form == "pixels")  # 32 x 32 x 3 bytes, times 1,000
