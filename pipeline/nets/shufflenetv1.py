"""ShuffleNet (Zhang et al., 2018) with three groups for small images, as in the CRD tables.

The stem is 1 x 1 and keeps the size.
"""

import torch
from torch import Tensor, nn

from pipeline.nets.layers import Chain, ChannelShuffle, conv_norm, conv_norm_relu

NAMES = ("shufflenetv1",)
GROUPS = 3
PARTS = {"stage1": (240, 4), "stage2": (480, 8), "stage3": (960, 4)}  # channels, blocks


class Block(nn.Module):
    """With `shrinks`, the pooled input is concatenated as further channels; otherwise the input is added."""

    def __init__(self, inputs: int, outputs: int, *, shrinks: bool, groups_in: int) -> None:
        super().__init__()
        self.shrinks = shrinks
        own = outputs - inputs if shrinks else outputs
        hidden = own // 4
        self.squeeze = conv_norm_relu(inputs, hidden, 1, groups=groups_in)
        self.shuffle = ChannelShuffle(groups_in)
        self.depthwise = conv_norm_relu(hidden, hidden, 3, stride=2 if shrinks else 1, groups=hidden)
        self.expand = conv_norm(hidden, own, 1, groups=GROUPS)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if shrinks else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        new, shortcut = self.expand(self.depthwise(self.shuffle(self.squeeze(x)))), self.shortcut(x)
        out: Tensor = self.relu(torch.cat([new, shortcut], dim=1) if self.shrinks else new + shortcut)
        return out


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if name not in NAMES:
        return None
    inputs = 24
    parts: dict[str, nn.Module] = {"stem": conv_norm_relu(channels, inputs, 1)}
    taps = {"stem": "stem.2"}
    for part, (outputs, count) in PARTS.items():
        groups_in = 1 if part == "stage1" else GROUPS  # 24 channels are too few to split
        first = Block(inputs, outputs, shrinks=True, groups_in=groups_in)
        rest = [Block(outputs, outputs, shrinks=False, groups_in=GROUPS) for _ in range(count - 1)]
        parts[part] = nn.Sequential(first, *rest)
        taps[part] = f"{part}.{count - 1}.relu"
        inputs = outputs
    return Chain(parts, taps, features=inputs, classes=classes)
