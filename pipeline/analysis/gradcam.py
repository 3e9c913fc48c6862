"""Where networks look: Grad-CAM of a teacher and its students side by side (Selvaraju et al., "Grad-CAM",
2017).

The heat of an image is `relu(sum over channels k of w_k A_k)`, H x W, divided by its largest value. A is the
deepest map with more than one pixel, and `w_k` the mean over the pixels of the gradient of the predicted
class's logit with respect to `A_k`. Each network explains its own prediction.

The formula is written out here, because the library `grad-cam` brings OpenCV, matplotlib and hooks of its
own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.analysis.drawing import Font, fitted, paper, save
from pipeline.data.seen import Seen
from pipeline.functional import normalise
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.tapped import Tapped

TILE = 128
GAP = 8
LINE = 22
ROW = TILE + LINE + GAP
RAMP = np.array(
    [(20, 11, 53), (101, 21, 110), (187, 55, 84), (243, 120, 25), (252, 255, 164)], dtype=float
)  # from little heat to much
OPAQUE = 0.65  # of the heat's colour where it is hottest
RIGHT, WRONG = (0, 120, 60), (200, 30, 30)
LEGEND = "Bright: what the prediction depends on. Full dot: the prediction is right."


class Explanation(NamedTuple):
    """What a network predicts for a batch of images, and where it looks."""

    heat: Tensor  # B x H x W of the map, 0 to 1
    predicted: Tensor  # B
    probability: Tensor  # B


def grad_cam(net: Tapped, images: Tensor) -> Explanation:
    """Predictions for normalised images, in eval mode, and their heat."""
    with in_eval_mode(net.net), torch.enable_grad():
        answer = net(images.detach().clone().requires_grad_())
        maps = list(answer.maps.values())
        deepest = next((features for features in reversed(maps) if features.shape[2:].numel() > 1), maps[-1])
        top = answer.logits.max(1)
        (gradient,) = torch.autograd.grad(top.values.sum(), deepest)
    heat = F.relu((gradient.mean((2, 3), keepdim=True) * deepest.detach()).sum(1))
    hottest = heat.amax((1, 2), keepdim=True)
    heat = torch.where(hottest > 0, heat / hottest, 0.0)
    return Explanation(heat, top.indices, answer.logits.detach().softmax(1).amax(1))


def side_by_side(
    nets: Mapping[str, tuple[Tapped, Sequence[str]]],
    images: np.ndarray,
    labels: Sequence[str],
    out: Path,
) -> None:
    """A picture: a row for each image (uint8 N x H x W x C), then what each network predicts, with which
    probability, and where it looks.

    `labels` are the names of the images' classes. With each network come the names of its own classes, which
    may be others.
    """
    assert len(images) == len(labels) > 0
    page, draw, font = paper(GAP + (1 + len(nets)) * (TILE + GAP), GAP + LINE + len(images) * ROW + LINE)
    for column, name in enumerate(["image", *nets]):
        corner = (GAP + column * (TILE + GAP), GAP // 2)
        draw.text(corner, fitted(name, TILE, draw, font), fill="black", font=font)
    tiles = [_tile(pixels) for pixels in images]
    for row, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x, y = GAP, GAP + LINE + row * ROW
        page.paste(tile, (x, y))
        draw.text((x, y + TILE + 2), fitted(label, TILE, draw, font), fill="black", font=font)
    for column, (net, classes) in enumerate(nets.values(), start=1):
        explained = grad_cam(net, _input(net, images))
        for row, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
            x, y = GAP + column * (TILE + GAP), GAP + LINE + row * ROW
            page.paste(_heated(tile, explained.heat[row].cpu().numpy()), (x, y))
            predicted, probability = classes[int(explained.predicted[row])], explained.probability[row].item()
            _caption((x, y + TILE), predicted, probability, predicted == label, draw, font)
    draw.text(
        (GAP, page.height - LINE), fitted(LEGEND, page.width - 2 * GAP, draw, font), fill="gray", font=font
    )
    save(page, out)


def _caption(
    corner: tuple[int, int],
    predicted: str,
    probability: float,
    is_right: bool,
    draw: ImageDraw.ImageDraw,
    font: Font,
) -> None:
    """Below a tile: a dot, the predicted class and its probability."""
    (x, y), colour, percent = corner, RIGHT if is_right else WRONG, f"{probability:.0%}"
    draw.text((x + TILE, y + 2), percent, fill=colour, font=font, anchor="ra")
    draw.ellipse((x, y + 7, x + 8, y + 15), fill=colour if is_right else None, outline=colour, width=2)
    room = TILE - 18 - draw.textlength(percent, font=font)
    draw.text((x + 13, y + 2), fitted(predicted, room, draw, font), fill=colour, font=font)


def _input(net: Tapped, images: np.ndarray) -> Tensor:
    pixels = torch.as_tensor(Seen(images, net.input.size)[:], device=next(net.net.parameters()).device)
    return normalise(pixels, net.input.mean, net.input.std)


def _tile(pixels: np.ndarray) -> Image.Image:
    """An image as large as a tile: small ones show their pixels, large ones are reduced smoothly."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    resampling = Image.Resampling.LANCZOS if image.width > TILE else Image.Resampling.NEAREST
    return image.resize((TILE, TILE), resampling)


def _heated(tile: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in grey, under the colours of the heat: the hotter, the more opaque."""
    small = Image.fromarray(heat.astype(np.float32))
    smooth = np.asarray(small.resize(tile.size, Image.Resampling.BICUBIC)).clip(0, 1)
    steps = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(smooth, steps, RAMP[:, channel]) for channel in range(3)], axis=2)
    share = OPAQUE * (0.4 + 0.6 * smooth)[:, :, None]
    grey = np.asarray(tile.convert("L"), dtype=float)[:, :, None]
    return Image.fromarray(((1 - share) * grey + share * colour).round().astype(np.uint8))
