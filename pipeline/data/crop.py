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
    down, right, mirror = draws(rows, number, seed)
    down, right = (below(each, 2 * cfg.pad + 1) - cfg.pad for each in (down, right))
    mirrored = mirror < cfg.flip * 2**21
    move = _copied if pixels.device.type == "cpu" else _gathered
    return move(pixels, down, right, mirrored, fill).permute(0, 3, 1, 2)


def _copied(pixels: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, fill: Tensor) -> Tensor:
    """Image by image: a CPU copies the part that stays in sight far faster than single pixels."""
    views = torch.empty(pixels.shape)
    views[:] = fill.flatten()
    side = pixels.shape[1]
    down, right = (each.clamp(-side, side) for each in (down, right))
    moves = zip(pixels, views, down.tolist(), right.tolist(), mirrored.tolist(), strict=True)
    for image, view, by, aside, is_mirrored in moves:
        part = image[max(by, 0) : side + min(by, 0), max(aside, 0) : side + min(aside, 0)]
        if is_mirrored:
            part, aside = part.flip(1), -aside
        top, left = max(-by, 0), max(-aside, 0)
        view[top : top + part.shape[0], left : left + part.shape[1]] = part
    return views


def _gathered(pixels: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, fill: Tensor) -> Tensor:
    """All at once: a GPU would wait for many small copies."""
    count, side, _, channels = pixels.shape
    along = torch.arange(side, device=pixels.device)
    # places in the image that each pixel of the view comes from; some are outside
    from_row = along + down.unsqueeze(1)
    from_column = torch.where(mirrored.unsqueeze(1), side - 1 - along, along) + right.unsqueeze(1)
    first = torch.arange(count, device=pixels.device).unsqueeze(1) * side
    places = (first + from_row.clamp(0, side - 1)).unsqueeze(2) * side
    places = places + from_column.clamp(0, side - 1).unsqueeze(1)
    views = pixels.reshape(-1, channels).index_select(0, places.flatten()).view(pixels.shape).float()
    outside = [(each < 0) | (each >= side) for each in (from_row, from_column)]
    is_outside = outside[0].unsqueeze(2) | outside[1].unsqueeze(1)
    return torch.where(is_outside.unsqueeze(3), fill.flatten(), views)
