"""ShuffleNetV2 (Ma et al., 2018) for small images, as in the CRD tables.

The stem is 1 x 1 and keeps the size. A part ends in a shuffle of two halves, so its tap is the part itself.
"""

import torch
from torch import Tensor, nn

from pipeline.nets.layers import Chain, ChannelShuffle, conv_norm, conv_norm_relu

WIDTHS = {"shufflenetv2": (116, 232, 464), "shufflenetv2_x0.5": (48, 96, 192)}
BLOCKS = (4, 8, 4)
LAST = 1024
NAMES = tuple(WIDTHS)


def _branch(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm_relu(inputs, outputs, 1),
        conv_norm(outputs, outputs, 3, stride=stride, groups=outputs),
        conv_norm_relu(outputs, outputs, 1),
    )


class Block(nn.Module):
    """Half of the channels pass unchanged; the other half goes through the branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, stride=1)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        unchanged, changed = x.chunk(2, dim=1)
        out: Tensor = self.shuffle(torch.cat([unchanged, self.branch(changed)], dim=1))
        return out


class Down(nn.Module):
    """The first block of a part: halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            conv_norm(inputs, inputs, 3, stride=2, groups=inputs), conv_norm_relu(inputs, outputs // 2, 1)
        )
        self.right = _branch(inputs, outputs // 2, stride=2)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(torch.cat([self.left(x), self.right(x)], dim=1))
        return out


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if name not in WIDTHS:
        return None
    inputs = 24
    parts: dict[str, nn.Module] = {"stem": conv_norm_relu(channels, inputs, 1)}
    taps = {"stem": "stem.2"}
    for n, (outputs, count) in enumerate(zip(WIDTHS[name], BLOCKS, strict=True), start=1):
        parts[f"stage{n}"] = nn.Sequential(Down(inputs, outputs), *(Block(outputs) for _ in range(count - 1)))
        taps[f"stage{n}"] = f"stage{n}"
        inputs = outputs
    parts["last"] = conv_norm_relu(inputs, LAST, 1)
    return Chain(parts, taps, features=LAST, classes=classes)
