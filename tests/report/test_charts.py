import itertools
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from markupsafe import Markup

from pipeline.report import charts
from pipeline.report.charts import Mark, Scale


def elements(chart: Markup, kind: str) -> list[Element]:
    """The elements of a class, in the order in which they are drawn."""
    return [each for each in ElementTree.fromstring(chart).iter() if kind in each.get("class", "").split()]


def number(element: Element, key: str) -> float:
    return float(element.attrib[key].removesuffix("%"))


def names_of_marks(chart: Markup) -> list[str]:
    return [each.attrib["class"] for each in ElementTree.fromstring(chart).iter("use")]


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
def test_ticks_are_round_and_within_the_scale(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks == pytest.approx(ticks)


def test_equal_values_have_a_scale() -> None:
    for values in ([0.0], [100.0, 100.0], [1e-6]):
        scale = charts.scale_around(values)
        assert scale.low < values[0] < scale.high
        assert 1 <= len(scale.ticks) < 12


def test_amounts_start_at_zero_unless_they_differ_much() -> None:
    assert charts.scale_of_amounts([0.3, 0.7]).low == 0
    assert charts.scale_of_amounts([0.3, 70.0]).log
    assert not charts.scale_of_amounts([0.0, 70.0]).log


def test_every_mark_stands_at_its_value() -> None:
    marks = [Mark("dot", 50, "one"), Mark("best", 150, "two")]
    chart = charts.strip(Scale(0, 200), marks, lines={"baseline": 100}, interval=(20, 400))
    for kind, place in (("dot", 25), ("best", 75)):
        (mark,) = elements(chart, kind)
        assert (mark.attrib["href"], number(mark, "x")) == (f"#m-{kind}", place)
    (line,) = elements(chart, "rule")
    assert line.attrib["class"] == "rule baseline"
    assert (number(line, "x1"), number(line, "x2")) == (50, 50)
    # the interval leaves the scale on the right, so it has an end only on the left
    along, end = elements(chart, "span")
    assert (number(along, "x1"), number(along, "x2")) == (10, 100)
    assert (number(end, "x1"), number(end, "x2")) == (10, 10)


@pytest.mark.parametrize(("value", "arrow", "place"), [(77, "→", 100), (-3, "←", 0)])
def test_a_mark_beyond_the_scale_is_an_arrow(value: float, arrow: str, place: float) -> None:
    chart = charts.strip(Scale(0, 10), [Mark("teacher", value, "the value")], lines={"teacher": value})
    (text,) = elements(chart, "name")
    assert (text.text, number(text, "x")) == (arrow, place)
    assert [title.text for title in text] == ["the value"]
    assert not elements(chart, "rule")
    assert not names_of_marks(chart)


@pytest.mark.parametrize(("value", "kind", "left", "width"), [(25, "more", 50, 25), (-25, "less", 25, 25)])
def test_a_bar_goes_left_of_zero_for_a_loss(value: float, kind: str, left: float, width: float) -> None:
    (bar,) = elements(charts.bar(Scale(-50, 50), value), kind)
    assert (number(bar, "x"), number(bar, "width")) == (left, width)


def test_a_long_line_has_fewer_points_but_keeps_its_ends() -> None:
    n = 10_000
    xs = [float(i) for i in range(n)]
    chart = charts.curves(Scale(0, n - 1), Scale(0, n - 1), [("seed", xs, xs)], says="a line", form="g")
    (line,) = elements(chart, "seed")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) <= charts.MOST_POINTS + 1
    assert (points[0], points[-1]) == ((0, 1000), (1000, 0))


def test_labels_of_points_at_one_place_stand_apart() -> None:
    points = [(1.0, Mark("student", 50.0 + 0.01 * i, "")) for i in range(5)]
    chart = charts.scatter(Scale(0, 2), Scale(0, 100), points, dict(enumerate("abcde")), [4], says="points")
    heights = sorted(number(text, "y") for text in elements(chart, "name"))
    assert len(heights) == 5
    assert all(b - a >= 15 for a, b in itertools.pairwise(heights))


def test_names_are_text_whatever_they_contain() -> None:
    points = [(1.0, Mark("best", 0.5, '"><script>'))]
    labels = {0: "</text><script>"}
    chart = charts.scatter(Scale(0, 2), Scale(0, 1), points, labels, [0], says='"><script>')
    assert "<script>" not in chart


def test_long_names_keep_their_beginning_and_their_end() -> None:
    name = "a_run_named_with_every_one_of_its_settings_7"
    points = [(1.0, Mark("best", 0.5, name))]
    chart = charts.scatter(Scale(0, 2), Scale(0, 1), points, {0: name}, [0], says="points")
    assert [text.text for text in elements(chart, "name")] == ["a_run_named_…ts_settings_7"]


def test_the_best_is_drawn_over_the_others() -> None:
    points = [(1.0, Mark("best", 0.5, "")), (1.0, Mark("student", 0.5, ""))]
    chart = charts.scatter(Scale(0, 2), Scale(0, 1), points, {}, [0], says="points")
    assert names_of_marks(chart) == ["student", "best"]


def test_bars_of_reliability_are_as_high_as_the_accuracy() -> None:
    chart = charts.reliability([(4, 0.2, 0.5), (0, 0.0, 0.0), (16, 0.9, 0.75)], says="bars")
    bars = elements(chart, "bin")
    assert [number(bar, "height") / charts.RELIABILITY for bar in bars] == pytest.approx([0.5, 0.75])
    assert [number(bar, "x") for bar in bars] == pytest.approx([0, 200 / 3], abs=0.5)
    assert [title.text for title in bars[1]] == ["16 images, mean confidence 90.0%, accuracy 75.0%"]
