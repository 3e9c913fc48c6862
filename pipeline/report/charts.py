"""Small charts as inline SVG. Places along the width are percentages and heights are pixels, so text keeps its size at every width."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

ROW = 30  # height of a row of a chart of rows
MOST_POINTS = 160  # of one line; more can't be told apart
LABEL = 26  # characters of a name beside its point


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    log: bool = False
    about: int = 6  # so many ticks

    def at(self, value: float) -> float:
        """From 0 at the low end to 100 at the high one."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 2)

    @property
    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
            return [step * 10.0**e for e in exponents for step in steps if self.low <= step * 10.0**e <= self.high]
        step = _step((self.high - self.low) / self.about)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Iterable[float], *, least: float = 0.0, about: int = 6) -> Scale:
    """Around all values with a little room; at least `least` wide."""
    found = list(values)
    low, high = min(found), max(found)
    room = max(0.06 * (high - low), (least - (high - low)) / 2, 0.01 * abs(high), 1e-9)
    return Scale(low - room, high + room, about=about)


def amounts(values: Iterable[float]) -> Scale:
    """Of sizes and times: from nothing on, or logarithmic where they differ so much that the small ones couldn't be told apart."""
    found = list(values)
    low, high = min(found), max(found)
    return Scale(low / 1.5, high * 1.5, log=True) if low > 0 and high / low > 12 else Scale(0, 1.15 * high or 1)


@dataclass(frozen=True)
class Mark:
    """A thing to look at: `kind` is its shape (best, student, alone, teacher, dot), `says` what a pointer over it tells."""

    kind: str
    value: float
    says: str
    rise: int = 0  # pixels above the middle of a row


def row(along: Scale, marks: Sequence[Mark], *, lines: Mapping[str, float], span: tuple[float, float] | None = None) -> Markup:
    """Marks on a line of a chart of rows, over guide lines of some class at some value.

    What lies beyond the scale is an arrow at its edge; `span` is an interval, open where it leaves the scale.
    """
    middle = ROW / 2
    parts = [Markup('<line class="grid" x1="{x}%" x2="{x}%" y1="-4" y2="{}"/>').format(ROW + 4, x=along.at(tick)) for tick in along.ticks]
    parts += [
        Markup('<line class="guide {}" x1="{x}%" x2="{x}%" y1="0" y2="{}"/>').format(kind, ROW, x=along.at(value))
        for kind, value in lines.items()
        if along.low <= value <= along.high
    ]
    if span is not None:
        low, high = (along.at(min(max(end, along.low), along.high)) for end in span)
        parts.append(Markup('<line class="span" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(low, high, y=middle))
        parts += [
            Markup('<line class="span" x1="{x}%" x2="{x}%" y1="{}" y2="{}"/>').format(middle - 5, middle + 5, x=along.at(end))
            for end in span
            if along.low <= end <= along.high
        ]
    for mark in marks:
        if along.low <= mark.value <= along.high:
            parts.append(_mark(mark, f"{along.at(mark.value)}%", middle - mark.rise))
        else:
            x, anchor, arrow = (0, "start", "←") if mark.value < along.low else (100, "end", "→")
            parts.append(
                Markup('<text class="name {}" x="{}%" y="{}" text-anchor="{}">{}<title>{}</title></text>').format(
                    mark.kind, x, middle + 4, anchor, arrow, mark.says
                )
            )
    return _svg(parts, ROW)


def axis(along: Scale, *, form: str) -> Markup:
    """Numbers under a chart of rows."""
    parts = [
        Markup('<text x="{}%" y="14" text-anchor="middle">{}</text>').format(along.at(tick), format(tick, form)) for tick in along.ticks
    ]
    return _svg(parts, 20)


def bar(along: Scale, value: float) -> Markup:
    """From zero to a value, to the right or to the left."""
    zero, end = along.at(0), along.at(value)
    rect = Markup('<rect class="{}" x="{}%" width="{}%" y="5" height="{}"/>').format(
        "less" if value < 0 else "more", min(zero, end), round(abs(end - zero), 2), ROW - 10
    )
    return _svg([rect, Markup('<line class="zero" x1="{x}%" x2="{x}%" y1="0" y2="{}"/>').format(ROW, x=zero)], ROW)


def scatter(
    x: Scale, y: Scale, points: Sequence[tuple[float, Mark]], labels: Mapping[int, str], front: Sequence[int], *, says: str
) -> Markup:
    """Points of (x, mark); `labels` by point; `front` are the points that a dashed line joins, from left to right."""
    height = 260.0

    def place(i: int) -> tuple[float, float]:
        across, mark = points[i]
        return x.at(across), round(height * (1 - y.at(mark.value) / 100), 1)

    parts = _grid(x, y, height)
    for a, b in itertools.pairwise(front):
        (x1, y1), (x2, y2) = place(a), place(b)
        parts.append(Markup('<line class="front" x1="{}%" y1="{}" x2="{}%" y2="{y}"/>').format(x1, y1, x2, y=y1))
        parts.append(Markup('<line class="front" x1="{x}%" y1="{}" x2="{x}%" y2="{}"/>').format(y1, y2, x=x2))
    on_top_last = sorted(range(len(points)), key=lambda i: points[i][1].kind == "best")
    parts += [_mark(points[i][1], f"{place(i)[0]}%", place(i)[1]) for i in on_top_last]
    taken: list[tuple[float, float]] = []
    for i in sorted(labels, key=lambda i: place(i)[1]):
        across, down = place(i)
        right = across > 60
        while any(abs(down - other) < 15 and abs(across - beside) < 35 for beside, other in taken):
            down += 1
        taken.append((across, down))
        parts.append(
            Markup('<text class="name {}" x="{}%" y="{}" dx="{}" text-anchor="{}">{}</text>').format(
                points[i][1].kind, across, down + 4, -11 if right else 11, "end" if right else "start", _shortened(labels[i])
            )
        )
    return _svg(parts, height, says)


def curves(
    x: Scale, y: Scale, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, says: str, form: str, height: int = 96
) -> Markup:
    """Lines of (class, xs, ys) over a grid."""
    parts = _grid(x, y, height, form=form)
    inner = [
        Markup('<polyline class="{}" points="{}"/>').format(
            kind, " ".join(f"{10 * x.at(a):.0f},{1000 - 10 * y.at(b):.0f}" for a, b in _thinned(list(zip(xs, ys, strict=True))))
        )
        for kind, xs, ys in lines
    ]
    parts.append(
        Markup('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="{}">{}</svg>').format(
            height, Markup().join(inner)
        )
    )
    return _svg(parts, height, says)


def reliability(bins: Sequence[tuple[int, float, float]], *, says: str) -> Markup:
    """Bars of accuracy by confidence, from (images, confidence, accuracy) of equally wide bins, over the diagonal where both are equal."""
    height, whole = 180, Scale(0, 1)
    width, most = 100 / len(bins), max(n for n, _, _ in bins)
    parts = _grid(whole, whole, height, form=".0%")
    for i, (n, confidence, accuracy) in enumerate(bins):
        if n:
            told = f"{n} images, confidence {confidence:.1%} on average, {accuracy:.1%} right"
            parts.append(
                Markup('<rect class="bin" x="{}%" width="{}%" y="{}" height="{}" style="--part:{}"><title>{}</title></rect>').format(
                    round(i * width + 0.4, 2), round(width - 0.8, 2), round(height * (1 - accuracy), 1), round(height * accuracy, 1),
                    round(0.25 + 0.75 * math.sqrt(n / most), 2), told,
                )
            )  # fmt: skip
    parts.append(Markup('<line class="diagonal" x1="0%" y1="{}" x2="100%" y2="0"/>').format(height))
    return _svg(parts, height, says)


def _svg(parts: Iterable[Markup], height: float, says: str = "") -> Markup:
    """With `says` a picture that a screen reader names; without, decoration beside numbers that are text."""
    role = Markup('role="img" aria-label="{}"').format(says) if says else Markup('aria-hidden="true"')
    return Markup('<svg class="chart" width="100%" height="{}" {}>{}</svg>').format(height, role, Markup().join(parts))


def _mark(mark: Mark, x: str, y: float) -> Markup:
    return Markup('<use class="{kind}" href="#m-{kind}" x="{}" y="{}"><title>{}</title></use>').format(x, y, mark.says, kind=mark.kind)


def _grid(x: Scale, y: Scale, height: float, *, form: str = "") -> list[Markup]:
    parts = []
    for tick in y.ticks:
        down = round(height * (1 - y.at(tick) / 100), 1)
        parts.append(Markup('<line class="grid" x1="0%" x2="100%" y1="{y}" y2="{y}"/>').format(y=down))
        parts.append(
            Markup('<text x="-6" y="{}" text-anchor="end">{}</text>').format(down + 4, format(tick, form) if form else f"{tick:g}")
        )
    for tick in x.ticks:
        parts.append(Markup('<text x="{}%" y="{}" text-anchor="middle">{}</text>').format(x.at(tick), height + 16, f"{tick:g}"))
    return parts


def _shortened(name: str) -> str:
    """Its beginning and its end: what tells names apart often stands there."""
    half = LABEL // 2
    return name if len(name) <= LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every n-th point and the last."""
    every = math.ceil(len(points) / MOST_POINTS) or 1
    return points[:-1:every] + points[-1:]


def _step(rough: float) -> float:
    """One of 1, 2 and 5 times a power of ten, not much smaller."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= 0.8 * rough)
