import contextlib
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from data.folders import picture
from PIL import Image, ImageOps

from pipeline.data import decode


def encoded(image: Image.Image, format: str = "PNG", exif: Image.Exif | None = None) -> bytes:
    file = BytesIO()
    image.save(file, format, **({} if exif is None else {"exif": exif}))
    return file.getvalue()


RED = np.array([200, 10, 30], dtype=np.uint8)


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    image = picture(0, size=(16, 16))
    assert np.array_equal(decode.decode(encoded(image), 16, 3), np.asarray(image))


def test_bytes_path_file_and_image_give_the_same_pixels(tmp_path: Path) -> None:
    image = picture(1, size=(30, 20))
    (tmp_path / "a.png").write_bytes(encoded(image))
    expected = decode.decode(image, 8, 3)
    with (tmp_path / "a.png").open("rb") as file:
        for source in (encoded(image), tmp_path / "a.png", str(tmp_path / "a.png"), file):
            assert np.array_equal(decode.decode(source, 8, 3), expected)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 20), (20, 20), (5, 3), (1, 300)])
def test_the_centre_square_is_resized(width: int, height: int) -> None:
    image = picture(2, size=(width, height))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    expected = image.resize((20, 20), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    assert np.array_equal(decode.decode(image, 20, 3), np.asarray(expected))


SHAPES = ((1, 7), (7, 1), (300, 200), (3, 1000), (1000, 3), (20, 20), (41, 40))


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_a_squashed_picture_has_both_sides_resized(width: int, height: int) -> None:
    image = picture(2, size=(width, height))
    expected = image.resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(decode.decode(image, 20, 3, square="squash"), np.asarray(expected))
    luma = np.asarray(expected.convert("L"))[:, :, None]
    assert np.array_equal(decode.decode(image, 20, 1, square="squash"), luma)


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_a_padded_picture_is_whole_in_the_centre_of_grey(width: int, height: int) -> None:
    image = picture(2, size=(width, height))
    decoded = decode.decode(image, 20, 3, square="pad")
    scale = 20 / max(width, height)
    w, h = (max(1, int(side * scale + 0.5)) for side in (width, height))
    left, top = (20 - w) // 2, (20 - h) // 2
    whole = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))
    assert np.array_equal(decoded[top : top + h, left : left + w], whole)
    border = np.ones((20, 20), bool)
    border[top : top + h, left : left + w] = False
    assert (decoded[border] == 128).all()
    assert max(w, h) == 20
    assert border.sum() == 400 - w * h
    luma = decode.decode(image, 20, 1, square="pad")
    assert np.array_equal(luma[:, :, 0], np.asarray(Image.fromarray(decoded).convert("L")))


def test_ways_to_a_square_differ_unless_the_picture_is_one() -> None:
    for size, distinct in (((30, 20), 3), ((24, 24), 1)):
        image = picture(2, size=size)
        assert len({decode.decode(image, 16, 3, square=way).tobytes() for way in decode.SQUARES}) == distinct


def test_shrinking_is_anti_aliased() -> None:
    fine = np.indices((64, 64)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(fine[:, :, None].astype(np.uint8), 3, axis=2))
    assert abs(decode.decode(image, 8, 3).astype(int) - 127).max() < 16


# of a square that is kept, and of what is seen of it
STEPS = ((48, 32), (33, 17), (17, 33), (8, 64), (7, 1), (1, 5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kept", "size"), STEPS)
def test_what_is_seen_is_resized_from_what_is_kept(kept: int, size: int, channels: int) -> None:
    image = picture(2, size=(90, 61))
    square = ImageOps.fit(image, (kept, kept), Image.Resampling.BILINEAR)
    square = square if channels == 3 else square.convert("L")
    expected = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
    decoded = decode.decode(image, size, channels, kept=kept)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, expected.reshape(size, size, channels))
    stored = np.asarray(square).reshape(kept, kept, channels)
    assert np.array_equal(decode.see(stored, size), decoded)


def test_the_square_that_is_kept_makes_a_difference() -> None:
    image = picture(2, size=(90, 61))
    assert not np.array_equal(decode.decode(image, 32, 3, kept=48), decode.decode(image, 32, 3))
    assert np.array_equal(decode.decode(image, 32, 3, kept=32), decode.decode(image, 32, 3))


def test_pixels_of_the_right_size_stay_the_same_array() -> None:
    pixels = np.asarray(picture(0, size=(16, 16)))
    assert decode.see(pixels, 16) is pixels


def test_what_is_seen_is_anti_aliased() -> None:
    fine = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert abs(decode.see(fine, 8).astype(int) - 127).max() < 16


def test_one_channel_is_luma() -> None:
    image = picture(3, size=(9, 9))
    assert np.array_equal(decode.decode(image, 9, 1)[:, :, 0], np.asarray(image.convert("L")))
    assert decode.decode(image, 9, 1).shape == (9, 9, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_stays_grey_exactly(channels: int) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode.decode(encoded(Image.fromarray(values)), 16, channels)
    assert np.array_equal(decoded, np.repeat(values[:, :, None], channels, axis=2))


@pytest.mark.parametrize("big_endian", [False, True])
def test_sixteen_bits_are_scaled_and_not_clipped(big_endian: bool) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image, format = (
        (Image.fromarray(values.astype(">u2")), "TIFF") if big_endian else (Image.fromarray(values), "PNG")
    )
    assert np.array_equal(
        decode.decode(encoded(image, format), 16, 1)[:, :, 0], np.arange(256).reshape(16, 16)
    )


def test_palette_cmyk_and_bilevel_become_rgb() -> None:
    colours = Image.fromarray(np.tile(RED, (8, 8, 1)))
    assert np.array_equal(
        decode.decode(encoded(colours.convert("P", palette=Image.Palette.ADAPTIVE)), 8, 3)[4, 4], RED
    )
    cmyk = decode.decode(encoded(colours.convert("CMYK"), "JPEG"), 8, 3)[4, 4].astype(int)
    assert abs(cmyk - RED).max() <= 6
    assert np.array_equal(decode.decode(encoded(Image.new("1", (8, 8), 1)), 8, 3), np.full((8, 8, 3), 255))


def test_transparency_is_laid_on_white() -> None:
    half = np.zeros((8, 8, 4), dtype=np.uint8)
    half[:, :, 0] = 255  # red, and the left half is transparent
    half[:, 4:, 3] = 255
    for format in ("PNG", "WEBP", "TIFF"):
        decoded = decode.decode(encoded(Image.fromarray(half), format), 8, 3)
        assert decoded[0, 0].tolist() == [255, 255, 255], format
        assert decoded[0, 7, 0] > 250, format
        assert decoded[0, 7, 1:].max() < 8, format


def test_a_transparent_palette_entry_is_white_too() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((0, 0), 1)
    image.info["transparency"] = 0
    decoded = decode.decode(encoded(image), 8, 3)
    assert decoded[0, 0].tolist() == [200, 0, 0]
    assert decoded[5, 5].tolist() == [255, 255, 255]


# how a camera stores an upright picture: the inverse of what the tag asks the reader to do
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright = np.full((16, 16, 3), 128, dtype=np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[:8, 8:] = (0, 255, 0)
    stored = STORED[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode.decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif), 16, 3)
    assert abs(decoded.astype(int) - upright)[2:6, 2:6].max() < 40
    assert abs(decoded.astype(int) - upright)[2:6, 10:14].max() < 40


# Pillow's TiffImagePlugin, which reads EXIF, warns of it
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_broken_exif_block_is_ignored() -> None:
    whole = encoded(picture(4), "JPEG")
    rubbish = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\x99" * 40
    broken = whole[:2] + b"\xff\xe1" + (len(rubbish) + 2).to_bytes(2, "big") + rubbish + whole[2:]
    assert np.array_equal(decode.decode(broken, 10, 3), decode.decode(whole, 10, 3))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (0, 255)]
    file = BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode.decode(file.getvalue(), 8, 3).max() == 0


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"", "empty"),
        (b"hello, world" * 10, "known format"),
        (encoded(picture(5, size=(200, 200)), "JPEG")[:5000], "truncated"),
        (encoded(picture(5, size=(200, 200)), "PNG")[:5000], "truncated|incomplete|broken|EOF"),
        (encoded(picture(5, size=(200, 200)), "BMP")[:5000], "truncated"),
        (encoded(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)), "TIFF"), "32-bit"),
        (encoded(picture(6).convert("L"), "EPS"), "known format"),
    ],
)
def test_bytes_that_are_not_a_picture_are_refused(source: bytes, why: str) -> None:
    with pytest.raises(decode.Undecodable, match=why) as caught:
        decode.decode(source, 8, 3)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [9_460, 9_500, 20_000])
# Pillow warns as well, besides our error
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_read(side: int) -> None:
    header = encoded(Image.new("1", (1, 1)))
    bomb = bytearray(header)
    bomb[16:24] = side.to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(decode.Undecodable, match=r"too many|bomb"):
        decode.decode(bytes(bomb), 8, 3)


def test_random_damage_gives_no_other_error() -> None:
    random = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        whole = np.frombuffer(encoded(picture(7, size=(24, 24)), format), dtype=np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[random.integers(0, len(broken), 6)] = random.integers(0, 256, 6)
            with contextlib.suppress(decode.Undecodable):
                assert decode.decode(broken.tobytes(), 8, 3).shape == (8, 8, 3)


def test_decode_imports_numpy_and_pillow_only() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'pydantic', 'sklearn', 'torchvision'): sys.modules[name] = None\n"
        "import pipeline.data.decode"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.skipif(not decode.READS_AVIF, reason="this Pillow was built without AVIF")
def test_avif_is_read_where_pillow_can() -> None:
    image = picture(8, size=(16, 16)).resize((64, 64))
    file = BytesIO()
    image.save(file, "AVIF", quality=95)
    assert abs(decode.decode(file.getvalue(), 16, 3).astype(int) - decode.decode(image, 16, 3)).mean() < 8
    assert ".avif" in decode.SUFFIXES


@pytest.mark.parametrize("installed", [False, True])
def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, installed: bool) -> None:
    """With a stand-in for the package, which is not among the project's own."""
    if installed:
        (tmp_path / "pillow_heif.py").write_text(
            "from PIL import Image\ndef register_heif_opener(): Image.register_open('HEIF', None)\n"
        )
    code = (
        "import sys, importlib.machinery\n"
        + ("" if installed else "sys.modules['pillow_heif'] = None\n")
        + f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from PIL import Image\n"
        "from pipeline.data import decode, walk\n"
        "print('HEIF' in decode.FORMATS, '.heic' in decode.SUFFIXES, 'HEIF' in Image.ID,"
        " walk.no_picture('a.HEIC').kind, walk.is_picture('a.HEIC'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    expected = "True True True other file True" if installed else "False False False .heic picture False"
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (b"", "empty"),
        (b"hello", "not an image"),
        (encoded(picture(5, size=(200, 200)), "JPEG")[:5000], "truncated"),
        (encoded(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF"), "unknown range"),
        (encoded(Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)), "TIFF"), "unknown range"),
    ],
)
def test_an_error_has_a_kind(source: bytes, kind: str) -> None:
    with pytest.raises(decode.Undecodable) as caught:
        decode.decode(source, 8, 3)
    assert caught.value.kind == kind
