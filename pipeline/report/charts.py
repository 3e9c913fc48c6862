"""Small charts as inline SVG. Widths are in percent and heights in pixels, so text never changes its size."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

STRIP = 30  # height of a strip
SCATTER, RELIABILITY = 260, 180  # heights of these charts
MOST_POINTS = 160  # of one line; more cannot be told apart
LONGEST_LABEL = 26  # characters


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    log: bool = False
    about: int = 6  # number of ticks

    def at(self, value: float) -> float:
        """From 0 at the low end to 100 at the high end."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 2)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
            return [step * 10.0**e for e in exponents for step in steps if step * 10.0**e in self]
        step = _round_step((self.high - self.low) / self.about)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_around(values: Iterable[float], *, least: float = 0.0, about: int = 6) -> Scale:
    """A scale for all values, with a little room at both ends, and at least `least` wide."""
    found = list(values)
    low, high = min(found), max(found)
    room = max(0.06 * (high - low), (least - (high - low)) / 2, 0.01 * abs(high), 1e-9)
    return Scale(low - room, high + room, about=about)


def scale_of_amounts(values: Iterable[float]) -> Scale:
    """A scale for sizes and times: from zero, or logarithmic if small values would lie too close together."""
    found = list(values)
    low, high = min(found), max(found)
    if low > 0 and high / low > 12:
        return Scale(low / 1.5, high * 1.5, log=True)
    return Scale(0, 1.15 * high or 1)


@dataclass(frozen=True)
class Mark:
    """A symbol in a chart. `kind` is its shape: best, student, baseline, teacher, dot or validation."""

    kind: str
    value: float
    tooltip: str
    rise: int = 0  # pixels above the middle of a strip


def strip(
    across: Scale,
    marks: Sequence[Mark],
    *,
    lines: Mapping[str, float],
    interval: tuple[float, float] | None = None,
) -> Markup:
    """A row of a chart: marks and vertical lines of some class at some value.

    A mark beyond the scale is an arrow at its edge. An interval has no end where it leaves the scale.
    """
    parts = [_vertical("grid", across.at(tick), -4, STRIP + 4) for tick in across.ticks]
    parts += [
        _vertical(f"rule {kind}", across.at(value), 0, STRIP)
        for kind, value in lines.items()
        if value in across
    ]
    parts += _interval(across, *interval) if interval else []
    for mark in marks:
        if mark.value in across:
            parts.append(_mark(mark, across.at(mark.value), STRIP / 2 - mark.rise))
        else:
            x, anchor, arrow = (0, "start", "←") if mark.value < across.low else (100, "end", "→")
            label = Markup("{}<title>{}</title>").format(arrow, mark.tooltip)
            parts.append(_text(label, x, STRIP / 2 + 4, anchor, kind=f"name {mark.kind}"))
    return _svg(parts, STRIP)


def axis(across: Scale, *, form: str) -> Markup:
    """The numbers under strips."""
    return _svg([_text(format(tick, form), across.at(tick), 14, "middle") for tick in across.ticks], 20)


def bar(across: Scale, value: float) -> Markup:
    """A bar from zero to a value, to the right or to the left."""
    zero, end = across.at(0), across.at(value)
    rect = Markup('<rect class="{}" x="{}%" width="{}%" y="5" height="{}"/>').format(
        "less" if value < 0 else "more", min(zero, end), round(abs(end - zero), 2), STRIP - 10
    )
    return _svg([rect, _vertical("zero", zero, 0, STRIP)], STRIP)


def scatter(
    x: Scale,
    y: Scale,
    points: Sequence[tuple[float, Mark]],
    labels: Mapping[int, str],
    front: Sequence[int],
    *,
    says: str,
) -> Markup:
    """Points of (x, mark). `labels` names some of them; a dashed line joins those of `front` in order."""
    places = [(x.at(value), round(SCATTER * (1 - y.at(mark.value) / 100), 1)) for value, mark in points]
    parts = _grid(x, y, SCATTER)
    for a, b in itertools.pairwise(front):
        (x1, y1), (x2, y2) = places[a], places[b]
        parts += [_horizontal("front", x1, x2, y1), _vertical("front", x2, y1, y2)]
    for (_, mark), place in sorted(
        zip(points, places, strict=True), key=lambda each: each[0][1].kind == "best"
    ):
        parts.append(_mark(mark, *place))  # the best last, and so over the others
    parts += _labels({i: (name, *places[i], points[i][1].kind) for i, name in labels.items()})
    return _svg(parts, SCATTER, says)


def curves(
    x: Scale,
    y: Scale,
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    says: str,
    form: str,
    height: int = 96,
) -> Markup:
    """Lines of (class, xs, ys) over a grid."""
    drawn = []
    for kind, xs, ys in lines:
        points = _thin_out(list(zip(xs, ys, strict=True)))
        text = " ".join(f"{10 * x.at(a):.0f},{1000 - 10 * y.at(b):.0f}" for a, b in points)
        drawn.append(Markup('<polyline class="{}" points="{}"/>').format(kind, text))
    inner = Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="{}">{}</svg>'
    ).format(height, Markup().join(drawn))
    return _svg([*_grid(x, y, height, form=form), inner], height, says)


def reliability(bins: Sequence[tuple[int, float, float]], *, says: str) -> Markup:
    """Bars of accuracy, from (images, mean confidence, accuracy) of equally wide bins of confidence, over the
    diagonal on which confidence and accuracy are equal."""
    height, whole = RELIABILITY, Scale(0, 1)
    width, most = 100 / len(bins), max(n for n, _, _ in bins)
    parts = _grid(whole, whole, height, form=".0%")
    for i, (n, confidence, accuracy) in enumerate(bins):
        if n:
            rect = Markup(
                '<rect class="bin" x="{}%" width="{}%" y="{}" height="{}" style="--part:{}">'
                "<title>{}</title></rect>"
            )
            parts.append(
                rect.format(
                    round(i * width + 0.4, 2),
                    round(width - 0.8, 2),
                    round(height * (1 - accuracy), 1),
                    round(height * accuracy, 1),
                    round(0.25 + 0.75 * math.sqrt(n / most), 2),
                    f"{n} images, mean confidence {confidence:.1%}, accuracy {accuracy:.1%}",
                )
            )
    diagonal = Markup('<line class="diagonal" x1="0%" y1="{}" x2="100%" y2="0"/>').format(height)
    return _svg([*parts, diagonal], height, says)


def _svg(parts: Iterable[Markup], height: float, says: str = "") -> Markup:
    """With `says`, a picture that a screen reader describes; without it, decoration beside text."""
    role = Markup('role="img" aria-label="{}"').format(says) if says else Markup('aria-hidden="true"')
    return Markup('<svg class="chart" width="100%" height="{}" {}>{}</svg>').format(
        height, role, Markup().join(parts)
    )


def _vertical(kind: str, x: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="{}" x1="{x}%" x2="{x}%" y1="{}" y2="{}"/>').format(kind, top, bottom, x=x)


def _horizontal(kind: str, left: float, right: float, y: float) -> Markup:
    return Markup('<line class="{}" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(kind, left, right, y=y)


def _text(text: str, x: float, y: float, anchor: str, *, kind: str = "", shift: int = 0) -> Markup:
    """`shift` is in pixels to the right."""
    return Markup('<text class="{}" x="{}%" y="{}" dx="{}" text-anchor="{}">{}</text>').format(
        kind, x, y, shift, anchor, text
    )


def _mark(mark: Mark, x: float, y: float) -> Markup:
    return Markup('<use class="{kind}" href="#m-{kind}" x="{}%" y="{}"><title>{}</title></use>').format(
        x, y, mark.tooltip, kind=mark.kind
    )


def _interval(across: Scale, low: float, high: float) -> list[Markup]:
    left, right = (across.at(min(max(end, across.low), across.high)) for end in (low, high))
    middle = STRIP / 2
    ends = [_vertical("span", across.at(end), middle - 5, middle + 5) for end in (low, high) if end in across]
    return [_horizontal("span", left, right, middle), *ends]


def _labels(labels: Mapping[int, tuple[str, float, float, str]]) -> list[Markup]:
    """Names beside points of (name, x, y, kind), moved down where they would lie on one another."""
    parts: list[Markup] = []
    taken: list[tuple[float, float]] = []
    for name, x, y, kind in sorted(labels.values(), key=lambda label: label[2]):
        is_right = x > 60
        while any(abs(y - other_y) < 15 and abs(x - other_x) < 35 for other_x, other_y in taken):
            y += 1
        taken.append((x, y))
        anchor, shift = ("end", -11) if is_right else ("start", 11)
        parts.append(_text(_shorten(name), x, y + 4, anchor, kind=f"name {kind}", shift=shift))
    return parts


def _grid(x: Scale, y: Scale, height: float, *, form: str = "g") -> list[Markup]:
    parts = []
    for tick in y.ticks:
        down = round(height * (1 - y.at(tick) / 100), 1)
        parts.append(_horizontal("grid", 0, 100, down))
        parts.append(_text(format(tick, form), 0, down + 4, "end", shift=-6))
    parts += [_text(f"{tick:g}", x.at(tick), height + 16, "middle") for tick in x.ticks]
    return parts


def _shorten(name: str) -> str:
    """Its beginning and its end, where names often differ."""
    half = LONGEST_LABEL // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _thin_out(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every n-th point and the last one."""
    every = math.ceil(len(points) / MOST_POINTS) or 1
    return points[:-1:every] + points[-1:]


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not much smaller than `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= 0.8 * rough)
