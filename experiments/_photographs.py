"""Photographs that are made up, for measurements."""

from collections.abc import Iterator

import numpy as np
from PIL import Image


def made_up(count: int) -> Iterator[Image.Image]:
    """Pictures of 500 x 375 pixels with shapes and some texture."""
    random = np.random.default_rng(0)
    for _ in range(count):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), dtype=float)
        yield Image.fromarray((smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))
