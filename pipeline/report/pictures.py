"""Pictures that a page can hold in itself, as data URIs."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import store
from pipeline.data.images import Images

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 112  # side of a picture in the page
WIDEST = 1100  # pixels, of a picture of many images
LOSSLESS = 16  # pictures up to this side are PNG


def open_images(data: Path) -> Images | None:
    """The prepared images, on disk until they are used; None if there are none."""
    try:
        return store.open_images(data)
    except FileNotFoundError:
        return None


def first_of_each(data: Path, images: int, classes: int, each: int) -> list[np.ndarray]:
    """For every class the rows of its first `each` images among the first `images`, the training images."""
    labels = np.load(data / "labels.npy", mmap_mode="r")[:images]
    return [np.flatnonzero(labels == label)[:each] for label in range(classes)]


def picture(image: np.ndarray) -> str:
    """One image (H x W x C)."""
    from PIL import Image

    tile = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    tile.thumbnail((LARGEST, LARGEST))
    return _uri(tile, "PNG" if tile.width <= LOSSLESS else "JPEG")


def heat_map(shares: np.ndarray, colour: tuple[int, int, int]) -> str:
    """A matrix of values from 0 to 1, a pixel for each. The value is the opacity of one colour, which can be
    seen on light and on dark ground."""
    from PIL import Image

    plane = np.empty((*shares.shape, 4), np.uint8)
    plane[:, :, :3] = colour
    plane[:, :, 3] = np.round(255 * np.sqrt(shares))
    return _uri(Image.fromarray(plane), "PNG")


def whole_file(file: Path) -> str:
    """A PNG file, unchanged."""
    return _encode(file.read_bytes(), "PNG")


def sheet_file(file: Path) -> str:
    """A large picture, as small as it can still be looked at; empty if there is none."""
    from PIL import Image

    if not file.is_file():
        return ""
    sheet = Image.open(file).convert("RGB")
    sheet.thumbnail((WIDEST, 4 * WIDEST))
    return _uri(sheet, "JPEG")


def _uri(image: "Image", form: str) -> str:
    stream = io.BytesIO()
    image.save(stream, form, quality=90)
    return _encode(stream.getvalue(), form)


def _encode(content: bytes, form: str) -> str:
    return f"data:image/{form.lower()};base64,{base64.b64encode(content).decode()}"
