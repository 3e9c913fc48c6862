from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.associations import Weights, draw, fixed, learned, mean, warnings
from pipeline.records.record import Record


def distilled(**content: Any) -> Record:
    return Record("distill", "r", {}, **content)


def test_learned_weights_are_the_last_notes_of_each_seed() -> None:
    curves = {
        f"distill/seed-{seed}": {
            "epoch": [1.0, 2.0],
            "note/stage1~stage2": [0.9, value],
            "note/dead": [0.0, 0.0],
            "loss": [1.0, 1.0],
        }
        for seed, value in ((0, 0.2), (12, 0.4))
    }
    pair = ("stage1", "stage2")
    found = learned(distilled(curves=curves))
    assert found == {0: {pair: 0.2}, 12: {pair: 0.4}}
    assert mean(found) == {pair: pytest.approx(0.3)}
    assert learned(distilled(curves={"distill/seed-0": {"loss": [1.0]}})) == {}
    assert mean({}) == {}


def test_fixed_pairs_are_pairs_of_maps_only() -> None:
    rows = [
        ["stem", "16 x 8 x 8", "", ""],
        ["stage1", "16 x 8 x 8", "16 x 8 x 8", "stage2, stage3"],
        ["stage2", "", "", ""],
        ["stage3", "", "", "stage3"],
        ["pooled", "64", "64", "pooled"],
        ["logits", "10", "10", "logits, pooled"],
    ]
    pairs = [("stage1", "stage2"), ("stage1", "stage3"), ("stage3", "stage3")]
    assert fixed(distilled(details={"overview": rows})) == dict.fromkeys(pairs, 1.0)


def test_weights_are_drawn_although_pairs_are_missing(tmp_path: Path) -> None:
    draw({("a", "x"): 0.5, ("a", "y"): 0.5, ("b", "y"): 1.0}, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("weights", "warned"),
    [
        ({("a", "x"): 0.79, ("a", "y"): 0.21, ("b", "x"): 0.6, ("b", "y"): 0.4}, True),
        ({("a", "x"): 0.79, ("a", "y"): 0.21, ("b", "x"): 0.4, ("b", "y"): 0.6}, False),
        ({("a", "x"): 0.79, ("a", "y"): 0.21}, False),
        ({("a", "x"): 1.0, ("b", "x"): 1.0}, False),
    ],
)
def test_a_warning_says_that_all_maps_learned_most_from_the_same_one(weights: Weights, warned: bool) -> None:
    assert bool(warnings(weights)) == warned
    if warned:
        assert warnings(weights) == [
            "All 2 maps of the student learned most from the teacher's x (weights 0.60 to 0.79), so the "
            "weights do not say which maps correspond."
        ]
