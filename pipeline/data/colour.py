"""Colours and blur of whole batches of pictures: B x C x H x W, floats from 0 to 255.

Brightness, contrast, saturation, hue and grey are one matrix and one offset for each image, so that a batch
is gone over once. Values are clipped in the end, not after each of them.
"""

import torch
from torch import Tensor

from pipeline.data.augment import AugmentConfig
from pipeline.data.boxes import boxes, inside
from pipeline.data.draws import Draws, between

LUMA = (0.299, 0.587, 0.114)
BLUR = (0.1 / 224, 2.0 / 224)  # sigma, smallest and largest, as a share of the side


def recolour(pictures: Tensor, cfg: AugmentConfig, draws: Draws) -> Tensor:
    """Brightness, contrast, saturation, hue and grey. What has no meaning in a grey image does nothing."""
    if not (cfg.brightness or cfg.contrast or cfg.saturation or cfg.hue or cfg.grey):
        return pictures
    bright, contrast, saturate = draws.uniform("colour")
    scale = between(bright, 1 - cfg.brightness, 1 + cfg.brightness)
    steep = between(contrast, 1 - cfg.contrast, 1 + cfg.contrast)
    luma = _luma(pictures.shape[1], pictures.device)
    mean = (pictures.mean((2, 3)) @ luma) * scale  # of the brightened image
    offset = ((1 - steep) * mean).view(-1, 1, 1)
    factor = (scale * steep).view(-1, 1, 1)
    if pictures.shape[1] == 1:
        return (pictures * factor[..., None] + offset[..., None]).clamp_(0, 255)
    matrix = factor * _mix_of_channels(
        saturate, cfg, draws, luma
    )  # keeps grey, so the offset is added after it
    return torch.baddbmm(offset, matrix, pictures.flatten(2)).clamp_(0, 255).view_as(pictures)


def blur(pictures: Tensor, cfg: AugmentConfig, draws: Draws) -> None:
    """Blur, in place, the images that the draws choose. At the border all weight is inside the image."""
    chosen = draws.happens("blur", cfg.blur).nonzero().flatten()
    if not len(chosen):
        return
    side, device = pictures.shape[2], pictures.device
    sigma = (side * between(draws.uniform("blur")[0][chosen], *BLUR)).to(device)
    place, chosen = torch.arange(side, device=device), chosen.to(device)
    distance = (place[:, None] - place).float() / sigma.view(-1, 1, 1)
    kernel = torch.softmax(-0.5 * distance**2, dim=2)[:, None]
    pictures[chosen] = kernel @ pictures[chosen] @ kernel.transpose(2, 3)


def erase(pictures: Tensor, cfg: AugmentConfig, draws: Draws, fill: Tensor) -> None:
    """Fill, in place, a rectangle of 2 to 33 % of the area in the images that the draws choose."""
    chosen = draws.happens("erase", cfg.erase).nonzero().flatten()
    if not len(chosen):
        return
    box = boxes(draws, "erase", area=(0.02, 0.33), ratio=(0.3, 3.3))[chosen].to(pictures.device)
    chosen = chosen.to(pictures.device)
    some = pictures[chosen]
    pictures[chosen] = torch.where(inside(box, some), fill, some)


def _mix_of_channels(saturate: Tensor, cfg: AugmentConfig, draws: Draws, luma: Tensor) -> Tensor:
    """B x 3 x 3: saturation, then hue, then grey. Each row sums to 1."""
    grey = luma.expand(3, 3)
    strength = between(saturate, 1 - cfg.saturation, 1 + cfg.saturation).view(-1, 1, 1)
    matrix = strength * torch.eye(3, device=luma.device) + (1 - strength) * grey
    if cfg.hue:
        matrix = _turn(between(draws.uniform("hue")[0], -cfg.hue, cfg.hue)) @ matrix
    if cfg.grey:
        matrix = torch.where(draws.happens("grey", cfg.grey).view(-1, 1, 1), grey, matrix)
    return matrix


def _turn(share: Tensor) -> Tensor:
    """B x 3 x 3: a rotation about the grey axis by this share of a full turn."""
    angle = (share * 2 * torch.pi).view(-1, 1, 1)
    third, root = 1 / 3, 3**-0.5
    across = root * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=share.device)
    cos, sin = angle.cos(), angle.sin()
    return cos * torch.eye(3, device=share.device) + (1 - cos) * third + sin * across


def _luma(channels: int, device: torch.device) -> Tensor:
    return torch.tensor(LUMA if channels == 3 else (1.0,), device=device)
