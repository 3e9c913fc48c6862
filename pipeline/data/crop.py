"""Random crops, resized to one size and mirrored; or, without crops, shifts and mirrors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.augment import AugmentConfig
from pipeline.data.boxes import boxes
from pipeline.data.draws import Draws, below, draws


def cropped(pixels: Tensor, size: int, cfg: AugmentConfig, drawn: Draws) -> list[Tensor]:
    """For each uint8 image of B x H x W x C: a random crop, resized and mirrored, 1 x C x size x size.

    torch's anti-aliased resizing of uint8 on a CPU is far faster than that of a batch of crops as matrices.
    """
    side = pixels.shape[1]
    found = (boxes(drawn, "crop", area=cfg.crop, ratio=cfg.ratio) * side).round().int().tolist()
    mirrored = drawn.happens("mirror", cfg.flip).tolist()
    views = []
    for image, (top, left, tall, wide), is_mirrored in zip(pixels, found, mirrored, strict=True):
        part = image[top : top + max(1, tall), left : left + max(1, wide)]
        view = resized(part.permute(2, 0, 1)[None], size)
        views.append(view.flip(3) if is_mirrored else view)
    return views


def resized(images: Tensor, size: int) -> Tensor:
    """Images N x C x H x W as N x C x size x size, bilinear and anti-aliased."""
    if images.shape[2:] == (size, size):
        return images
    if images.device.type != "cpu":  # only a CPU resizes uint8
        images = images.float()
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def shifted(pixels: Tensor, rows: Tensor, number: int, seed: int, cfg: AugmentConfig, fill: Tensor) -> Tensor:
    """uint8 images B x H x W x C, shifted and mirrored: B x C x H x W, floats. `fill` is the gaps' colour."""
    count, height, width, channels = pixels.shape
    device = pixels.device
    down, right, mirror = draws(rows, number, seed)
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    mirrored = (mirror < cfg.flip * 2**21).unsqueeze(1)
    # places in the image that each pixel of the view comes from; some are outside
    from_row = row + below(down, 2 * cfg.pad + 1).unsqueeze(1) - cfg.pad
    from_column = torch.where(mirrored, width - 1 - column, column)
    from_column = from_column + below(right, 2 * cfg.pad + 1).unsqueeze(1) - cfg.pad
    first = torch.arange(count, device=device).unsqueeze(1) * height
    places = (first + from_row.clamp(0, height - 1)).unsqueeze(2) * width
    places = places + from_column.clamp(0, width - 1).unsqueeze(1)
    # one gather of whole pixels is faster than a crop and then a flip
    view = pixels.reshape(-1, channels).index_select(0, places.flatten())
    views = view.view(count, height, width, channels).permute(0, 3, 1, 2).float()
    if not cfg.pad:
        return views
    outside = ((from_row < 0) | (from_row >= height)).unsqueeze(2) | (
        (from_column < 0) | (from_column >= width)
    ).unsqueeze(1)
    return torch.where(outside.unsqueeze(1), fill, views)
