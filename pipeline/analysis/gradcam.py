"""Where networks look: Grad-CAM of a teacher and its students side by side (Selvaraju et al., "Grad-CAM", 2017).

The heat of an answer is `relu(sum over channels k of w_k A_k)`, with A the deepest stage's map and w_k the mean over its pixels of the
answer's logit's gradient; it's divided by its largest value. Every network explains its own answer. The formula is written out because
`grad-cam`, the library there is for it, brings 150 MB of OpenCV and imports torchvision and matplotlib, and hooks networks a second time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.analysis.drawing import fitted, paper, save
from pipeline.functional import normalise
from pipeline.taps import Tapped, resting

TILE = 128
GAP = 8
LINE = 22
RAMP = np.array([(20, 11, 53), (101, 21, 110), (187, 55, 84), (243, 120, 25), (252, 255, 164)], dtype=float)  # from little heat to much
OPAQUE = 0.65  # of the heat's colour where it's hottest
RIGHT, WRONG = (0, 120, 60), (200, 30, 30)


class Answer(NamedTuple):
    heat: Tensor  # B x H x W of the stage, 0..1
    predicted: Tensor
    probability: Tensor


def grad_cam(net: Tapped, images: Tensor) -> Answer:
    """What a resting network answers to normalised images, and where it sees it."""
    with resting(net.net), torch.enable_grad():
        view = net(images.detach().clone().requires_grad_())
        maps = [stage for stage in view.stages.values() if stage.shape[2] * stage.shape[3] > 1] or list(view.stages.values())
        top = view.logits.max(1)
        (gradient,) = torch.autograd.grad(top.values.sum(), maps[-1])
    heat = F.relu((gradient.mean((2, 3), keepdim=True) * maps[-1].detach()).sum(1))
    hottest = heat.amax((1, 2), keepdim=True)
    heat = torch.where(hottest > 0, heat / hottest, 0.0)
    return Answer(heat, top.indices, view.logits.detach().softmax(1).amax(1))


def side_by_side(
    nets: Mapping[str, tuple[Tapped, Sequence[str]]], images: np.ndarray, labels: Sequence[str], out: Path,
    *, mean: Sequence[float], std: Sequence[float],
) -> None:  # fmt: skip
    """A picture: a row an image (uint8 N x H x W x C), then what each network answers, how surely, and where it sees it.

    `labels` name the images' classes, and with each network come the names of those it knows, which need not be the same.
    """
    assert len(images) == len(labels) > 0
    answers = {name: grad_cam(net, _input(net, images, mean, std)) for name, (net, _) in nets.items()}
    known = [classes for _, classes in nets.values()]
    top = GAP + LINE
    page, draw, font = paper(GAP + (1 + len(nets)) * (TILE + GAP), top + len(images) * (TILE + LINE + GAP) + LINE)
    for column, name in enumerate(["image", *nets]):
        draw.text((GAP + column * (TILE + GAP), GAP // 2), fitted(name, TILE, draw, font), fill="black", font=font)
    for row, label in enumerate(labels):
        y, picture = top + row * (TILE + LINE + GAP), _tile(images[row])
        page.paste(picture, (GAP, y))
        draw.text((GAP, y + TILE + 2), fitted(label, TILE, draw, font), fill="black", font=font)
        for column, (answer, classes) in enumerate(zip(answers.values(), known, strict=True), start=1):
            x, predicted = GAP + column * (TILE + GAP), classes[int(answer.predicted[row])]
            right = predicted == label
            page.paste(_heated(picture, answer.heat[row].cpu().numpy()), (x, y))
            colour, probability = RIGHT if right else WRONG, f"{answer.probability[row].item():.0%}"
            draw.text((x + TILE, y + TILE + 2), probability, fill=colour, font=font, anchor="ra")
            draw.ellipse((x, y + TILE + 7, x + 8, y + TILE + 15), fill=colour if right else None, outline=colour, width=2)
            room = TILE - 18 - draw.textlength(probability, font=font)
            draw.text((x + 13, y + TILE + 2), fitted(predicted, room, draw, font), fill=colour, font=font)
    told = "Bright: what the answer comes from. Full dot: a right answer."
    draw.text((GAP, page.height - LINE), fitted(told, page.width - 2 * GAP, draw, font), fill="gray", font=font)
    save(page, out)


def _input(net: Tapped, images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return normalise(torch.as_tensor(images, device=next(net.net.parameters()).device), mean, std)


def _tile(pixels: np.ndarray) -> Image.Image:
    """Small images with their pixels to be seen, large ones smoothly reduced."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    return image.resize((TILE, TILE), Image.Resampling.LANCZOS if image.width > TILE else Image.Resampling.NEAREST)


def _heated(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture in grey under the heat's colours, the more of them the hotter."""
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colour = np.stack([np.interp(smooth, np.linspace(0, 1, len(RAMP)), RAMP[:, channel]) for channel in range(3)], axis=2)
    share = OPAQUE * (0.4 + 0.6 * smooth)[:, :, None]
    grey = np.asarray(picture.convert("L"), dtype=float)[:, :, None]
    return Image.fromarray(((1 - share) * grey + share * colour).round().astype(np.uint8))
