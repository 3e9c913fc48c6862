"""The script that compares our steps with those of public code."""

import pytest

from experiments import step_speed

TINY = {"TEACHER": "resnet8", "STUDENT": "resnet8", "SIZE": 8, "CLASSES": 3, "BATCH": 4, "SIDE": 16}


def test_the_table_has_a_line_for_each_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TINY.items():
        monkeypatch.setattr(step_speed, name, value)
    head, _, _, _, *lines = step_speed.run(None, rounds=2).splitlines()
    assert "resnet8 teaches resnet8 with kd" in head
    rows = [line.strip("| ").split(" | ") for line in lines]
    names = [row[0] for row in rows]
    assert names[:3] == ["public code", "ours, live", "ours, stored"]
    assert names[3].startswith("ours, fast (")
    assert rows[0][4] == "1.00 [1.00, 1.00]"
    for _, cpu, wall, steps, _, share, rounds in rows:
        assert float(cpu) > 0
        assert float(wall) > 0
        assert float(steps) > 0
        assert share.endswith("%")
        assert rounds == "2"
