"""TrivialAugment (Mueller and Hutter, 2021): one random operation of random strength for each image.

The operations on colours are torchvision's. Turns and shears are written here, as torchvision's take three
times as long on a CPU. *Our reading*: a translation is a share of the side (32 of 224 pixels), so that it is
the same at every size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.draws import Draws

Operation = Callable[[Any, Tensor, float, Tensor], Tensor]  # torchvision's functions, image, strength, fill
SHIFT = 32 / 224


def trivially_augmented(images: Sequence[Tensor], draws: Draws, fill: Tensor) -> list[Tensor]:
    """uint8 images 1 x C x H x W, each after one operation. `fill`: the colour of what lies outside."""
    from torchvision.transforms.v2 import functional  # slow to import; only this policy needs it

    which, strength, _ = draws.uniform("policy")
    return [
        OPERATIONS[chosen](functional, image, strong, fill)
        for image, chosen, strong in zip(
            images, (which * len(OPERATIONS)).int().tolist(), strength.tolist(), strict=True
        )
    ]


def _signed(strength: float) -> float:
    return 2 * strength - 1


def _sheared(image: Tensor, strength: float, fill: Tensor, *, axis: int) -> Tensor:
    by = 0.99 * _signed(strength)
    return _warped(image, ((1.0, by), (0.0, 1.0)) if axis == 0 else ((1.0, 0.0), (by, 1.0)), fill)


def _rotated(image: Tensor, strength: float, fill: Tensor) -> Tensor:
    angle = math.radians(135.0 * _signed(strength))
    cos, sin = math.cos(angle), math.sin(angle)
    return _warped(image, ((cos, -sin), (sin, cos)), fill)


def _warped(image: Tensor, to_source: Sequence[Sequence[float]], fill: Tensor) -> Tensor:
    """Each pixel (x, y) from the place `to_source @ (x, y)` about the centre, between pixels bilinearly."""
    side = image.shape[2]
    place = (2 * torch.arange(side, device=image.device) + 1) / side - 1
    x, y = place, place[:, None]
    grid = torch.stack([row[0] * x + row[1] * y for row in to_source], 2)[None]
    above = F.grid_sample(image.float() - fill, grid, align_corners=False)  # what lies outside is 0
    return (above + fill).round_().to(image.dtype)


def _translated(image: Tensor, strength: float, fill: Tensor, *, dim: int) -> Tensor:
    """By whole pixels, so nothing is interpolated."""
    side = image.shape[dim]
    by = round(SHIFT * side * _signed(strength))
    moved = fill.round().to(image.dtype).repeat(1, 1, *image.shape[2:])
    moved.narrow(dim, max(by, 0), side - abs(by)).copy_(image.narrow(dim, max(-by, 0), side - abs(by)))
    return moved


OPERATIONS: tuple[Operation, ...] = (
    lambda f, image, strength, fill: image,
    lambda f, image, strength, fill: _sheared(image, strength, fill, axis=0),
    lambda f, image, strength, fill: _sheared(image, strength, fill, axis=1),
    lambda f, image, strength, fill: _translated(image, strength, fill, dim=3),
    lambda f, image, strength, fill: _translated(image, strength, fill, dim=2),
    lambda f, image, strength, fill: _rotated(image, strength, fill),
    lambda f, image, strength, fill: f.adjust_brightness(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.adjust_contrast(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.adjust_saturation(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.adjust_sharpness(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.posterize(image, 8 - round(6 * strength)),
    lambda f, image, strength, fill: f.solarize(image, 255 * (1 - strength)),
    lambda f, image, strength, fill: f.autocontrast(image),
    lambda f, image, strength, fill: f.equalize(image),
)
