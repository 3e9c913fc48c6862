"""The script that measures what stored answers save."""

import pytest

from experiments import answers_speed


def test_the_table_has_a_line_for_each_method(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TEACHER", "resnet8"), ("STUDENT", "resnet8"), ("SIZE", 8), ("CLASSES", 5)):
        monkeypatch.setattr(answers_speed, name, value)
    *_, kd, at = answers_speed.run(["kd", "at"], images=8, rounds=1).splitlines()
    for line, method, read in ((kd, "kd", "logits"), (at, "at", "map stage1, map stage2, map stage3")):
        first, parts, live, stored, *ratios, rounds = line.strip("| ").split(" | ")
        assert (first, parts, rounds) == (method, read, "1")
        assert float(live) >= 0
        assert float(stored) >= 0
        assert len(ratios) == 3
