from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.associations import Weights, draw, fixed, learned, warnings
from pipeline.record import Record


def distilled(**content: Any) -> Record:
    return Record("distill", "r", {}, **content)


def test_learned_weights_are_those_of_the_end_mean_over_seeds() -> None:
    curves = {
        f"distill/seed-{seed}": {"epoch": [1.0, 2.0], "note/stage1~stage2": [0.9, value], "note/dead": [0.0, 0.0], "loss": [1.0, 1.0]}
        for seed, value in enumerate((0.2, 0.4))
    }
    assert learned(distilled(curves=curves)) == {("stage1", "stage2"): pytest.approx(0.3)}
    assert learned(distilled(curves={"distill/seed-0": {"loss": [1.0]}})) == {}


def test_fixed_pairs_are_those_of_stages_alone() -> None:
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


def test_a_map_is_drawn_where_pairs_are_missing(tmp_path: Path) -> None:
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
def test_it_is_told_when_all_heed_the_same_stage(weights: Weights, warned: bool) -> None:
    assert bool(warnings(weights)) == warned
    if warned:
        assert warnings(weights) == ["All 2 stages of the student learned most from x of the teacher (weights 0.60 to 0.79)."]
