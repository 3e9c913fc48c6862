"""The data set as one picture: some training images of each class, under its name and counts."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import Images

PER_CLASS = 8
MAX_CLASSES = 20
TILE = 96
GAP = 6
LINE = 24


def sheet(
    images: Images, labels: np.ndarray, classes: Sequence[str], per_class: Mapping[str, Mapping[str, int]]
) -> Image.Image:
    """The first images of each class. `per_class` holds the number of images by split and class name."""
    shown = classes[:MAX_CLASSES]
    rest = len(classes) - len(shown)
    width = PER_CLASS * (TILE + GAP) + GAP
    page = Image.new("RGB", (width, len(shown) * (LINE + TILE + GAP) + GAP + (LINE if rest else 0)), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for label, name in enumerate(shown):
        top = label * (LINE + TILE + GAP) + GAP
        counts = ", ".join(f"{split} {counted[name]:,}" for split, counted in per_class.items())
        draw.text((width - GAP, top), counts, fill="gray", font=font, anchor="ra")
        room = width - 3 * GAP - draw.textlength(counts, font=font)
        draw.text((GAP, top), _shortened(" ".join(name.split()), room, draw, font), fill="black", font=font)
        for column, row in enumerate(np.flatnonzero(labels == label)[:PER_CLASS]):
            page.paste(tile(images[row]), (GAP + column * (TILE + GAP), top + LINE))
    if rest:
        noun = "class" if rest == 1 else "classes"
        draw.text((GAP, page.height - LINE), f"... and {rest} more {noun}", fill="black", font=font)
    return page


def _shortened(
    text: str, room: float, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    text = text[:200]
    while len(text) > 3 and draw.textlength(text, font=font) > room:
        text = text.removesuffix("...")[:-1] + "..."
    return text


def tile(pixels: np.ndarray) -> Image.Image:
    """One image on white: a small one enlarged by a whole factor, a large one smoothly reduced."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if image.width > TILE:
        return image.resize((TILE, TILE), Image.Resampling.LANCZOS)
    side = TILE // image.width * image.width
    tile = Image.new("RGB", (TILE, TILE), "white")
    tile.paste(image.resize((side, side), Image.Resampling.NEAREST), ((TILE - side) // 2, (TILE - side) // 2))
    return tile
