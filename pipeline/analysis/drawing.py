"""Small pictures drawn with Pillow: matplotlib takes a second to import, and longer on a new machine."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.files import atomic_file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
GAP = 12
LINE = 22
CELL = (76, 40)
NAMES = 96  # room for the name of a row
PANEL = (340, 150)  # of bars
AXIS = 56  # room for the numbers beside a panel
DECADES = 4  # most that the axis of a panel shows
FULL: Colour = (38, 92, 178)
WARNING: Colour = (200, 30, 30)
GREY: Colour = (110, 110, 110)
GRID: Colour = (225, 225, 225)


class HeatMap(NamedTuple):
    """A table of numbers; from 0 to 1 the colour of a cell shows its value."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


def heat_maps(panels: Sequence[HeatMap], out: Path, *, across: str, down: str) -> None:
    """Heat maps side by side, with the number in each cell; `across` and `down` say what columns and rows
    are."""
    widths = [NAMES + len(panel.columns) * CELL[0] + GAP for panel in panels]
    rows = max(len(panel.rows) for panel in panels)
    page, draw, font = paper(GAP + sum(widths), 3 * LINE + rows * CELL[1] + LINE + GAP)
    left = GAP
    for panel, width in zip(panels, widths, strict=True):
        draw.text((left, 2), fitted(panel.title, width - GAP, draw, font), fill="black", font=font)
        draw.text((left + NAMES, LINE), across, fill=GREY, font=font)
        _table(panel, left, draw, font)
        left += width
    draw.text((GAP, page.height - LINE), f"Rows: {down}.", fill=GREY, font=font)
    save(page, out)


def _table(panel: HeatMap, left: float, draw: ImageDraw.ImageDraw, font: Font) -> None:
    first = left + NAMES
    for column, name in enumerate(panel.columns):
        place, text = (first + (column + 0.5) * CELL[0], 2 * LINE), fitted(name, CELL[0] - 4, draw, font)
        draw.text(place, text, fill="black", font=font, anchor="ma")
    for row, (name, values) in enumerate(zip(panel.rows, panel.values, strict=True)):
        y = 3 * LINE + row * CELL[1]
        text = fitted(name, NAMES - GAP, draw, font)
        draw.text((first - GAP / 2, y + CELL[1] / 2), text, fill="black", font=font, anchor="rm")
        for column, value in enumerate(values):
            _cell((first + column * CELL[0], y), value, draw, font)


def _cell(corner: tuple[float, float], value: float, draw: ImageDraw.ImageDraw, font: Font) -> None:
    (x, y), much = corner, min(max(value, 0.0), 1.0)
    draw.rectangle((x, y, x + CELL[0] - 2, y + CELL[1] - 2), fill=_shade(much))
    colour = "white" if much > 0.55 else "black"
    draw.text((x + CELL[0] / 2, y + CELL[1] / 2), f"{value:.2f}", fill=colour, font=font, anchor="mm")


class Use(NamedTuple):
    """How often each of many things is used."""

    title: str
    note: str
    counts: Sequence[int]
    alarming: bool


def uses(panels: Sequence[Use], out: Path, *, legend: str) -> None:
    """The counts as bars, the largest first, on a logarithmic scale; a count of 0 is a red line at the
    bottom."""
    width, height = PANEL
    page, draw, font = paper(GAP + len(panels) * (AXIS + width + GAP), 2 * LINE + height + LINE + LINE)
    for n, panel in enumerate(panels):
        left = GAP + n * (AXIS + width + GAP) + AXIS
        draw.text((left, 2), fitted(panel.title, width, draw, font), fill="black", font=font)
        colour, note = WARNING if panel.alarming else GREY, fitted(panel.note, width, draw, font)
        draw.text((left, LINE), note, fill=colour, font=font)
        _bars(panel.counts, (left, 2 * LINE), draw, font)
    legend = fitted(legend, page.width - 2 * GAP, draw, font)
    draw.text((GAP, page.height - LINE), legend, fill=GREY, font=font)
    save(page, out)


def _bars(counts: Sequence[int], corner: tuple[float, float], draw: ImageDraw.ImageDraw, font: Font) -> None:
    (left, top), (width, height) = corner, PANEL
    total = sum(counts)
    decades = min(max(1, math.ceil(math.log10(max(total, 1)))), DECADES)
    for decade in range(decades + 1):
        y = top + height * decade / decades
        draw.line((left, y, left + width, y), fill=GRID)
        draw.text((left - 6, y), f"{100 * 10.0**-decade:g} %", fill=GREY, font=font, anchor="rm")
    ranked = sorted(counts, reverse=True)
    for n in range(width):
        x, count, bottom = left + n, ranked[n * len(ranked) // width], top + height
        if count:
            share = max(1 + math.log10(count / total) / decades, 0.01)
            draw.line((x, top + height * (1 - share), x, bottom), fill=FULL)
        else:
            draw.line((x, bottom - 4, x, bottom), fill=WARNING)


def paper(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw, Font]:
    """A white page, what draws on it, and a font."""
    page = Image.new("RGB", (round(width), round(height)), "white")
    return page, ImageDraw.Draw(page), ImageFont.load_default(14)


def save(page: Image.Image, out: Path) -> None:
    with atomic_file(out) as file:
        page.save(file, "PNG")


def fitted(text: str, room: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """The text in one line, cut off so that it is at most `room` pixels wide."""
    text = " ".join(text.split())[:200]
    while len(text) > 1 and draw.textlength(text, font=font) > room:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _shade(much: float) -> Colour:
    """From white at 0 to full colour at 1."""
    red, green, blue = (round(255 + much * (full - 255)) for full in FULL)
    return red, green, blue
