"""The script that measures what stored answers save."""

import pytest

from experiments import answers_speed


def test_the_table_has_a_line_for_each_method(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TEACHER", "resnet8"), ("STUDENT", "resnet8"), ("SIZE", 8), ("CLASSES", 5)):
        monkeypatch.setattr(answers_speed, name, value)
    printed = answers_speed.run(["kd", "at", "jacobian"], images=8, rounds=1)
    *_, kd, at, jacobian, _, together = printed.splitlines()
    assert together.startswith("Last phases of 3 methods, 3 seeds of 64 epochs, 16 views")
    for line, method, read in (
        (kd, "kd", "logits"),
        (at, "at", "map stage1, map stage2, map stage3"),
        (jacobian, "jacobian", "the teacher runs live"),
    ):
        first, parts, live, stored, *ratios, rounds = line.strip("| ").split(" | ")
        assert (first, parts, rounds) == (method, read, "1")
        assert float(live) >= 0
        assert float(stored) >= 0
        assert len(ratios) == 3


def test_a_comparison_is_seeds_and_epochs_and_the_making_of_answers() -> None:
    def cost(read: list[str] | None, live: float, stored: float, terms: float) -> answers_speed.Cost:
        return answers_speed.Cost("m", read, {"live": [live], "stored": [stored], "terms": [terms]}, 12.0)

    costs = [cost(["logits"], 10.0, 4.0, 3.0), cost(None, 20.0, 19.0, 18.0)]
    made, stored = 16 / 2 * 24, 16 / 2 * 24 + 3 * 64 * (4 + 20)
    said = answers_speed._comparison(costs)
    assert f": 5,760 s live; {stored:,.0f} s from stored answers, {made:,.0f} of them to make these" in said
    assert f"({5760 / stored:.2f} times cheaper)" in said
    assert f"{(5760 - stored) / (3 * 64 * 7):.0%} of the teacher's 1,344 s are gone, for the 1 method" in said
