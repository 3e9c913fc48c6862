import itertools
import re

import pytest

from pipeline.report import charts
from pipeline.report.charts import Mark, Scale


def test_a_scale_places_its_ends() -> None:
    assert [Scale(10, 20).at(value) for value in (10, 15, 20)] == [0, 50, 100]
    assert [Scale(1, 100, log=True).at(value) for value in (1, 10, 100)] == [0, 50, 100]


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 12), [0, 2, 4, 6, 8, 10, 12]),
        (Scale(87.1, 98.9), [88, 90, 92, 94, 96, 98]),
        (Scale(-0.4, 0.6), [-0.4, -0.2, 0, 0.2, 0.4, 0.6]),
        (Scale(0.5, 30, log=True), [0.5, 1, 2, 5, 10, 20]),
    ],
)
def test_ticks_are_round_and_within(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks == pytest.approx(ticks)


def test_equal_values_still_have_a_scale() -> None:
    for values in ([0.0], [100.0, 100.0], [1e-6]):
        scale = charts.scale(values)
        assert scale.low < values[0] < scale.high
        assert 1 <= len(scale.ticks) < 12


def test_amounts_start_at_nothing_unless_they_differ_by_orders() -> None:
    assert charts.amounts([0.3, 0.7]).low == 0
    assert charts.amounts([0.3, 70.0]).log
    assert not charts.amounts([0.0, 70.0]).log


def test_every_mark_stands_where_its_value_is() -> None:
    svg = charts.row(Scale(0, 200), [Mark("dot", 50, "one"), Mark("best", 150, "two")], lines={"to-alone": 100}, span=(20, 400))
    assert re.findall(r'href="#m-(\w+)" x="([\d.]+)%"', svg) == [("dot", "25.0"), ("best", "75.0")]
    assert 'class="guide to-alone" x1="50.0%"' in svg
    assert 'class="span" x1="10.0%" x2="100.0%"' in svg  # leaves the scale on the right ...
    assert svg.count('class="span"') == 2  # ... and has an end on the left alone


def test_what_lies_beyond_the_scale_is_an_arrow() -> None:
    svg = charts.row(Scale(0, 10), [Mark("teacher", 77, "77.30 %")], lines={"to-teacher": 77})
    assert "→<title>77.30 %</title>" in svg
    assert "guide" not in svg
    assert "<use" not in svg


def test_a_bar_goes_left_of_zero_for_a_loss() -> None:
    along = Scale(-50, 50)
    assert 'class="more" x="50.0%" width="25.0%"' in charts.bar(along, 25)
    assert 'class="less" x="25.0%" width="25.0%"' in charts.bar(along, -25)


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    n = 10_000
    xs = [float(i) for i in range(n)]
    svg = charts.curves(Scale(0, n - 1), Scale(0, n - 1), [("seed", xs, xs)], says="a line", form="g")
    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    places = points.group(1).split()
    assert len(places) <= charts.MOST_POINTS + 1
    assert (places[0], places[-1]) == ("0,1000", "1000,0")


def test_labels_of_points_at_one_place_stand_apart() -> None:
    points = [(1.0, Mark("student", 50.0 + 0.01 * i, "")) for i in range(5)]
    svg = charts.scatter(Scale(0, 2), Scale(0, 100), points, dict(enumerate("abcde")), [4], says="points")
    heights = sorted(float(y) for y in re.findall(r'class="name student" x="[\d.]+%" y="([\d.]+)"', svg))
    assert len(heights) == 5
    assert all(b - a >= 15 for a, b in itertools.pairwise(heights))


def test_whatever_a_name_holds_is_text() -> None:
    svg = charts.scatter(Scale(0, 2), Scale(0, 1), [(1, Mark("best", 0.5, '"><script>'))], {0: "</text><script>"}, [0], says='"><script>')
    assert "<script>" not in svg


def test_long_names_keep_their_beginning_and_their_end() -> None:
    name = "a_run_named_with_every_one_of_its_settings_7"
    svg = charts.scatter(Scale(0, 2), Scale(0, 1), [(1, Mark("best", 0.5, name))], {0: name}, [0], says="points")
    label = re.search(r'<text class="name best"[^>]*>([^<]+)<', svg)
    assert label is not None
    assert label.group(1) == "a_run_named_…ts_settings_7"


def test_the_best_is_drawn_over_the_others() -> None:
    points = [(1.0, Mark("best", 0.5, "")), (1.0, Mark("student", 0.5, ""))]
    svg = charts.scatter(Scale(0, 2), Scale(0, 1), points, {}, [0], says="points")
    assert re.findall(r"#m-(\w+)", svg) == ["student", "best"]
