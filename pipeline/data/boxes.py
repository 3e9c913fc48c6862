"""Random boxes inside an image, as shares of its side, so that they are the same at every size."""

import torch
from torch import Tensor

from pipeline.data.draws import Draws


def boxes(drawn: Draws, what: str, *, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """B x 4: top, left, height and width of a random box inside the image, as shares of its side.

    The area is uniform; the ratio is uniform in its logarithm, among those for which the box fits.
    """
    a, b, _ = drawn.uniform(f"{what} shape")
    top, left, _ = drawn.uniform(f"{what} place")
    size = area[0] + a * (area[1] - area[0])
    low, high = size.clamp_min(ratio[0]), (1 / size).clamp_max(ratio[1])
    chosen = low * (high / low) ** b
    wide, tall = (size * chosen).sqrt().clamp_max(1), (size / chosen).sqrt().clamp_max(1)
    return torch.stack([top * (1 - tall), left * (1 - wide), tall, wide], 1)


def inside(box: Tensor, pictures: Tensor) -> Tensor:
    """B x 1 x H x W: which pixels have their centre in the box (top, left, height and width, B x 4)."""
    height, width = pictures.shape[2:]
    top, left, tall, wide = (each.view(-1, 1) for each in box.unbind(1))
    row = (torch.arange(height, device=pictures.device) + 0.5) / height
    column = (torch.arange(width, device=pictures.device) + 0.5) / width
    rows = (row >= top) & (row < top + tall)
    columns = (column >= left) & (column < left + wide)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
