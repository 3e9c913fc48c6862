"""TrivialAugment (Mueller and Hutter, 2021): one random operation of random strength for each image.

The operations are torchvision's, but for translations. *Our reading*: a translation is a share of the side
(32 of 224 pixels), so that it is the same at every size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.data.draws import Draws

Operation = Callable[
    [Any, Tensor, float, list[float]], Tensor
]  # torchvision's functions, image, strength, fill
SHIFT = 32 / 224


def trivially_augmented(images: Sequence[Tensor], draws: Draws, fill: Tensor) -> list[Tensor]:
    """uint8 images 1 x C x H x W, each after one operation. `fill`: the colour of what lies outside."""
    from torchvision.transforms.v2 import functional  # slow to import; only this policy needs it

    which, strength, _ = draws.uniform("policy")
    colour = fill.flatten().tolist()
    return [
        OPERATIONS[chosen](functional, image, strong, colour)
        for image, chosen, strong in zip(
            images, (which * len(OPERATIONS)).int().tolist(), strength.tolist(), strict=True
        )
    ]


def _signed(strength: float) -> float:
    return 2 * strength - 1


def _bilinear() -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode.BILINEAR


def _sheared(f: Any, image: Tensor, strength: float, fill: list[float], *, axis: int) -> Tensor:
    angle = float(torch.rad2deg(torch.atan(torch.tensor(0.99 * _signed(strength)))))
    shear = [angle, 0.0] if axis == 0 else [0.0, angle]
    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0}
    sheared: Tensor = f.affine(image, shear=shear, interpolation=_bilinear(), fill=fill, **still)
    return sheared


def _translated(image: Tensor, strength: float, fill: list[float], *, dim: int) -> Tensor:
    """By whole pixels, so nothing is interpolated."""
    side = image.shape[dim]
    by = round(SHIFT * side * _signed(strength))
    moved = (
        torch.tensor(fill, device=image.device)
        .round()
        .to(image.dtype)
        .view(1, -1, 1, 1)
        .repeat(1, 1, *image.shape[2:])
    )
    moved.narrow(dim, max(by, 0), side - abs(by)).copy_(image.narrow(dim, max(-by, 0), side - abs(by)))
    return moved


def _rotated(f: Any, image: Tensor, strength: float, fill: list[float]) -> Tensor:
    turned: Tensor = f.rotate(image, 135.0 * _signed(strength), _bilinear(), fill=fill)
    return turned


OPERATIONS: tuple[Operation, ...] = (
    lambda f, image, strength, fill: image,
    lambda f, image, strength, fill: _sheared(f, image, strength, fill, axis=0),
    lambda f, image, strength, fill: _sheared(f, image, strength, fill, axis=1),
    lambda f, image, strength, fill: _translated(image, strength, fill, dim=3),
    lambda f, image, strength, fill: _translated(image, strength, fill, dim=2),
    lambda f, image, strength, fill: _rotated(f, image, strength, fill),
    lambda f, image, strength, fill: f.adjust_brightness(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.adjust_contrast(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.adjust_saturation(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.adjust_sharpness(image, 1 + 0.99 * _signed(strength)),
    lambda f, image, strength, fill: f.posterize(image, 8 - round(6 * strength)),
    lambda f, image, strength, fill: f.solarize(image, 255 * (1 - strength)),
    lambda f, image, strength, fill: f.autocontrast(image),
    lambda f, image, strength, fill: f.equalize(image),
)
