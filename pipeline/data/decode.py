"""Any picture file to square uint8 pixels, in the same way for training and for the deployed predictor.

It imports numpy and Pillow only, because the predictor runs where nothing else is installed. The rules: the
EXIF orientation is applied, and a broken EXIF block is ignored. Transparency is laid on white. Palette, grey,
CMYK and 16-bit pixels become 8-bit RGB. An animation gives its first frame. Colour profiles are not applied.
Then the picture is resized by Pillow's bilinear filter with anti-aliasing, and becomes a square in one of
three ways:

- crop: the largest centred square is resized. That is the same as resizing the shorter side and cropping the
  centre.
- squash: both sides are resized to the same length, so shapes change.
- pad: the whole picture is resized to fit, and lies in the centre of a grey square.

The way of a picture has two steps. `fit` makes the square that the store keeps (`data.size`), and `see` makes
what a network sees of it (`input.size`). The first rounds to whole pixels, so the second cannot be skipped.

AVIF is read where Pillow can, and HEIC where pillow_heif is installed.
"""

from importlib.util import find_spec
from io import BytesIO
from os import PathLike
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

READS_AVIF = "avif" in features.modules and features.check_module("avif")
READS_HEIC = find_spec("pillow_heif") is not None
if READS_HEIC:
    import pillow_heif

    pillow_heif.register_heif_opener()

# Pillow also opens formats that run other programs (EPS), so only these are allowed
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"),
    *(("AVIF",) if READS_AVIF else ()),
    *(("HEIF",) if READS_HEIC else ()),
)
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | ({".avif"} if READS_AVIF else set())
    | ({".heic", ".heif", ".hif"} if READS_HEIC else set())
)
MAX_PIXELS = 89_478_485  # above this Pillow warns of a decompression bomb; here it is an error

Square = Literal["crop", "squash", "pad"]
SQUARES: tuple[Square, ...] = get_args(Square)
# The border of `pad`: mid-grey, which is near zero for most networks. The mean colour of the training images
# would be nearer, but then the pixels of a picture would depend on other pictures.
BORDER = (128, 128, 128)

Readable = bytes | str | PathLike[str] | BinaryIO | Image.Image


class Undecodable(ValueError):
    """The bytes are not a usable picture. The message says why in a few words, `kind` in one or two."""

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message)
        self.kind = kind


def decode(
    source: Readable, size: int, channels: int, *, kept: int | None = None, square: Square = "crop"
) -> np.ndarray:
    """A picture as a network sees it: uint8 `size x size x channels` (channels 1: luma, 3: RGB).

    `kept` is the side of the square that the store keeps of it; None: also `size`.
    """
    return see(fit(load(source), kept or size, channels, square), size)


def load(source: Readable) -> Image.Image:
    """A picture at its own size, upright, as RGB."""
    try:
        if isinstance(source, Image.Image):
            return _rgb(_upright(source))
        if source == b"":
            raise Undecodable("the file is empty", "empty")
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Undecodable(f"{image.width} x {image.height} pixels are too many", "too large")
            image.load()
            return _rgb(_upright(image))
    except Undecodable:
        raise
    except UnidentifiedImageError:
        raise Undecodable("not a picture in a known format", "not an image") from None
    except Exception as error:  # damaged bytes make Pillow raise errors of nearly every type
        raise Undecodable(str(error).partition("\n")[0] or type(error).__name__, _kind(error)) from error


def fit(image: Image.Image, size: int, channels: int, square: Square = "crop") -> np.ndarray:
    """An RGB picture as a square, uint8 `size x size x channels`."""
    if square == "crop":
        fitted = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    elif square == "squash":
        fitted = image.resize((size, size), Image.Resampling.BILINEAR)
    else:
        fitted = _padded(image, size)
    return np.asarray(fitted) if channels == 3 else np.asarray(fitted.convert("L"))[:, :, None]


def see(pixels: np.ndarray, size: int) -> np.ndarray:
    """A square of uint8 pixels as `size x size x channels`; the same array if it has this size already."""
    side, _, channels = pixels.shape
    if side == size:
        return pixels
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The whole picture in the centre of a grey square.

    Whole numbers only, so that other languages get the same sides: they are rounded, halves up.
    """
    longest = max(image.size)
    width, height = (max(1, (2 * side * size + longest) // (2 * longest)) for side in image.size)
    square = Image.new("RGB", (size, size), BORDER)
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(whole, ((size - width) // 2, (size - height) // 2))
    return square


def _kind(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too large"
    return "truncated" if "truncated" in str(error).lower() else "damaged"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not harm the pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Undecodable("floating-point pixels have no known range", "unknown range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Undecodable("32-bit pixels have no known range", "unknown range")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
