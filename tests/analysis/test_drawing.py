from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.analysis.drawing import (
    CELL,
    FULL,
    GAP,
    LINE,
    NAMES,
    PANEL,
    WARNING,
    HeatMap,
    Use,
    fitted,
    heat_maps,
    paper,
    uses,
)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_larger_value_has_a_darker_cell(tmp_path: Path) -> None:
    values = [[0.0, 1.0], [0.5, 7.0]]
    heat_maps(
        [HeatMap("a", ["s1", "s2"], ["t1", "t2"], values)] * 2,
        tmp_path / "map.png",
        across="teacher",
        down="student",
    )
    page = pixels(tmp_path / "map.png")
    for panel in (0, 1):
        left, top = GAP + panel * (NAMES + 2 * CELL[0] + GAP) + NAMES, 3 * LINE
        corners = [
            [page[top + row * CELL[1] + 2, left + column * CELL[0] + 2] for column in (0, 1)]
            for row in (0, 1)
        ]
        assert corners[0][0].tolist() == [255, 255, 255]
        assert corners[0][1].tolist() == list(FULL)
        assert corners[1][1].tolist() == list(FULL)  # a value above 1 has the colour of 1
        assert corners[1][0] == pytest.approx((255 + np.array(FULL)) / 2, abs=1)


def test_unused_things_are_red_and_used_ones_are_ranked(tmp_path: Path) -> None:
    uses([Use("stage1", "note", [0, 1, 1000, 0], alarming=False)], tmp_path / "use.png", legend="legend")
    page = pixels(tmp_path / "use.png")
    left, (width, height) = GAP + 56, PANEL
    area = page[2 * LINE : 2 * LINE + height, left : left + width]
    heights = (area == FULL).all(2).sum(0)
    assert heights[5] > 140  # nearly all
    assert heights[width // 4 + 5] < 60  # a thousandth
    red = (area == WARNING).all(2).any(0)
    assert not red[: width // 2].any()
    assert red[width // 2 + 1 :].all()


def test_more_things_than_pixels_can_be_drawn(tmp_path: Path) -> None:
    uses([Use("stage1", "note", list(range(5000)), alarming=True)], tmp_path / "use.png", legend="legend")
    assert (pixels(tmp_path / "use.png") == WARNING).all(2).any()  # the note is red


def test_nothing_used_at_all_can_be_drawn(tmp_path: Path) -> None:
    uses([Use("stage1", "note", [0, 0], alarming=False)], tmp_path / "use.png", legend="legend")
    assert not (pixels(tmp_path / "use.png") == FULL).all(2).any()


def test_text_is_cut_to_the_room_it_has() -> None:
    _, draw, font = paper(10, 10)
    cut = fitted("a name\nthat is far too long", 60, draw, font)
    assert cut.endswith("…")
    assert draw.textlength(cut, font=font) <= 60
    assert fitted("a\nb", 60, draw, font) == "a b"
