"""Inception-BN (Ioffe & Szegedy, 2015, figure 5), for images of 224 x 224.

Each block is a concatenation of branches, activated after it is made: the same as branches that end in an
activation each, because what the last branch of a shrinking block passes on has no negative values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.nets.layers import Chain, conv_norm, conv_norm_relu

NAMES = ("inception_bn",)
# channels of the 1 x 1 branch, of the 3 x 3 branch and its reduction, of the double 3 x 3 branch and its
# reduction, and of the pooled branch; 0: the branch is not there, or the pooled one has no projection
Widths = tuple[int, int, int, int, int, int]
BLOCKS: dict[str, tuple[Widths, ...]] = {
    "stage1": ((64, 64, 64, 64, 96, 32), (64, 64, 96, 64, 96, 64)),
    "stage2": (
        (0, 128, 160, 64, 96, 0),
        (224, 64, 96, 96, 128, 128),
        (192, 96, 128, 96, 128, 128),
        (160, 128, 160, 128, 160, 96),
        (96, 128, 192, 160, 192, 96),
    ),
    "stage3": ((0, 128, 192, 192, 256, 0), (352, 192, 320, 160, 224, 128), (352, 192, 320, 192, 224, 128)),
}
MAX_POOLED = (352, 192, 320, 192, 224, 128)  # the last block pools by the maximum, the others by the mean


class Block(nn.Module):
    """Without a 1 x 1 branch and a projection it halves the map."""

    def __init__(self, inputs: int, widths: Widths) -> None:
        super().__init__()
        plain, reduced, wide, reduced_twice, twice, projected = widths
        stride = 1 if plain else 2
        maximum = stride == 2 or widths == MAX_POOLED
        pool = nn.MaxPool2d(3, stride, padding=1) if maximum else nn.AvgPool2d(3, stride, padding=1)
        branches: list[nn.Module] = [conv_norm(inputs, plain, 1)] if plain else []
        branches += [
            nn.Sequential(conv_norm_relu(inputs, reduced, 1), conv_norm(reduced, wide, 3, stride=stride)),
            nn.Sequential(
                conv_norm_relu(inputs, reduced_twice, 1),
                conv_norm_relu(reduced_twice, twice, 3),
                conv_norm(twice, twice, 3, stride=stride),
            ),
            nn.Sequential(pool, conv_norm(inputs, projected, 1)) if projected else pool,
        ]
        self.branches = nn.ModuleList(branches)
        self.relu = nn.ReLU()
        self.outputs = plain + wide + twice + (projected or inputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(torch.cat([branch(x) for branch in self.branches], dim=1))
        return out


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if name not in NAMES:
        return None
    stem = [
        *conv_norm_relu(channels, 64, 7, stride=2),
        nn.MaxPool2d(3, 2, padding=1),
        *conv_norm_relu(64, 64, 1),
        *conv_norm_relu(64, 192, 3),
    ]
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*stem), "shrink": nn.MaxPool2d(3, 2, padding=1)}
    taps, width = {"stem": f"stem.{len(stem) - 1}"}, 192
    for stage, rows in BLOCKS.items():
        blocks = _stacked(width, rows)
        parts[stage], width = nn.Sequential(*blocks), blocks[-1].outputs
        taps[stage] = f"{stage}.{len(blocks) - 1}.relu"
    return Chain(parts, taps, features=width, classes=classes)


def _stacked(inputs: int, rows: Sequence[Widths]) -> list[Block]:
    blocks: list[Block] = []
    for widths in rows:
        blocks.append(Block(blocks[-1].outputs if blocks else inputs, widths))
    return blocks
