"""Random shift and mirror of whole batches. A view depends on seed, row of the store and number alone.

An image's random numbers are a hash of these three. So a view is the same in any batch, order, process and
device, and a teacher's answer to view 7 of an image can be stored and used again.
"""

import hashlib

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.settings import Settings


class AugmentConfig(Settings):
    """What a view may change of an image."""

    pad: int = Field(
        4, ge=0, description="pixels to shift by, at most, each way; the mean colour fills the gap"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal mirror")


def augment(images: Tensor, index: Tensor, number: int, seed: int, cfg: AugmentConfig) -> Tensor:
    """View number `number` of each image: N x C x H x W, normalised floats, in which zero is the mean colour.

    `index` (N) holds the rows of the images in the store.
    """
    count, channels, height, width = images.shape
    down, right, mirror = draws(index, number, seed)
    padded = F.pad(images, (cfg.pad,) * 4)
    row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    mirrored = (mirror < cfg.flip * 2**21).unsqueeze(1)
    rows = row + _below(down, 2 * cfg.pad + 1).unsqueeze(1)
    columns = torch.where(mirrored, width - 1 - column, column) + _below(right, 2 * cfg.pad + 1).unsqueeze(1)
    first = torch.arange(count, device=images.device).unsqueeze(1) * padded.shape[2]
    places = (first + rows).unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)
    pixels = padded.permute(0, 2, 3, 1).reshape(-1, channels)
    # one gather of whole pixels is faster than a crop and then a flip
    return pixels.index_select(0, places.flatten()).view(count, height, width, channels).permute(0, 3, 1, 2)


def draws(index: Tensor, number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three independent random integers of 21 bits for each index.

    They are the bits of the index-th output of SplitMix64, started at a hash of seed and number.
    """
    start = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "little", signed=True)
    # the constants are those of SplitMix64 as signed numbers; products wrap around, as it requires
    bits = index * -0x61C8864680B583EB + start
    bits = (bits ^ _shifted(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shifted(bits, 27)) * -0x6B2FB644ECCEEE15
    bits = bits ^ _shifted(bits, 31)
    low = 2**21 - 1
    return bits & low, _shifted(bits, 21) & low, _shifted(bits, 42) & low


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Right shift that brings in zeros. The shift of int64 brings in the sign."""
    return torch.bitwise_and(bits >> by, 2 ** (64 - by) - 1)


def _below(draw: Tensor, count: int) -> Tensor:
    return (draw * count) >> 21
