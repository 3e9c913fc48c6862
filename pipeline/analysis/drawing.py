"""Small pictures drawn with Pillow, which opens at once where matplotlib takes a second and builds its font cache on a new machine."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.checkpoint import atomic_file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
GAP = 12
LINE = 22
CELL = (76, 40)
NAMES = 96  # room for the name of a row
PANEL = (340, 150)  # of bars
FULL: Colour = (38, 92, 178)
WARNING: Colour = (200, 30, 30)
GREY: Colour = (110, 110, 110)
GRID: Colour = (225, 225, 225)


class HeatMap(NamedTuple):
    """Values from 0 to 1 where colour tells something; what is beyond has the colour of the nearest end."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


def heat_maps(panels: Sequence[HeatMap], out: Path, *, across: str, down: str) -> None:
    """Side by side, a number in every cell; `across` and `down` say what columns and rows are."""
    widths = [NAMES + len(panel.columns) * CELL[0] + GAP for panel in panels]
    rows = max(len(panel.rows) for panel in panels)
    page, draw, font = paper(GAP + sum(widths), 3 * LINE + rows * CELL[1] + LINE + GAP)
    left = GAP
    for panel, width in zip(panels, widths, strict=True):
        draw.text((left, 2), fitted(panel.title, width - GAP, draw, font), fill="black", font=font)
        draw.text((left + NAMES, LINE), across, fill=GREY, font=font)
        top = 3 * LINE
        for column, name in enumerate(panel.columns):
            centre = left + NAMES + (column + 0.5) * CELL[0]
            draw.text((centre, 2 * LINE), fitted(name, CELL[0] - 4, draw, font), fill="black", font=font, anchor="ma")
        for row, (name, values) in enumerate(zip(panel.rows, panel.values, strict=True)):
            y = top + row * CELL[1]
            label = fitted(name, NAMES - GAP, draw, font)
            draw.text((left + NAMES - GAP / 2, y + CELL[1] / 2), label, fill="black", font=font, anchor="rm")
            for column, value in enumerate(values):
                x, much = left + NAMES + column * CELL[0], min(max(value, 0.0), 1.0)
                draw.rectangle((x, y, x + CELL[0] - 2, y + CELL[1] - 2), fill=_shade(much))
                colour = "white" if much > 0.55 else "black"
                draw.text((x + CELL[0] / 2, y + CELL[1] / 2), f"{value:.2f}", fill=colour, font=font, anchor="mm")
        left += width
    draw.text((GAP, page.height - LINE), f"Rows: {down}.", fill=GREY, font=font)
    save(page, out)


class Use(NamedTuple):
    title: str
    note: str
    counts: Sequence[int]  # how often each was used
    alarming: bool


def uses(panels: Sequence[Use], out: Path, *, told: str) -> None:
    """How often each of many things was used, the most used first, on a logarithmic scale; the unused are a red line at the bottom."""
    width, height = PANEL
    axis = 56
    page, draw, font = paper(GAP + len(panels) * (axis + width + GAP), 2 * LINE + height + LINE + LINE)
    for n, panel in enumerate(panels):
        left, top = GAP + n * (axis + width + GAP) + axis, 2 * LINE
        draw.text((left, 2), fitted(panel.title, width, draw, font), fill="black", font=font)
        draw.text((left, LINE), fitted(panel.note, width, draw, font), fill=WARNING if panel.alarming else GREY, font=font)
        total = sum(panel.counts)
        decades = max(1, math.ceil(math.log10(max(total, 1))))
        for decade in range(min(decades, 4) + 1):
            y = top + height * decade / min(decades, 4)
            draw.line((left, y, left + width, y), fill=GRID)
            draw.text((left - 6, y), f"{100 * 10.0**-decade:g} %", fill=GREY, font=font, anchor="rm")
        ranked = sorted(panel.counts, reverse=True)
        for x in range(width):
            count = ranked[x * len(ranked) // width]
            if count:
                share = 1 + math.log10(count / total) / min(decades, 4)
                draw.line((left + x, top + height * (1 - max(share, 0.01)), left + x, top + height), fill=FULL)
            else:
                draw.line((left + x, top + height - 4, left + x, top + height), fill=WARNING)
    draw.text((GAP, page.height - LINE), fitted(told, page.width - 2 * GAP, draw, font), fill=GREY, font=font)
    save(page, out)


def paper(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw, Font]:
    page = Image.new("RGB", (round(width), round(height)), "white")
    return page, ImageDraw.Draw(page), ImageFont.load_default(14)


def save(page: Image.Image, out: Path) -> None:
    with atomic_file(out) as file:
        page.save(file, "PNG")


def fitted(text: str, room: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    text = " ".join(text.split())[:200]
    while len(text) > 1 and draw.textlength(text, font=font) > room:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _shade(much: float) -> Colour:
    red, green, blue = (round(255 + much * (full - 255)) for full in FULL)
    return red, green, blue
