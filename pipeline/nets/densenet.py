"""DenseNet-BC-121 (Huang et al., 2017) with a 3 x 3 stem for small images.

The output of a dense block is a raw concatenation. The activation that reads it is at the start of the next
part, so the taps are there.
"""

import torch
from torch import Tensor, nn

from pipeline.nets.layers import Chain

NAMES = ("densenet121",)
GROWTH = 32
LAYERS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """Adds `GROWTH` channels to its input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, 4 * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * GROWTH)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return torch.cat([x, new], dim=1)


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if name not in NAMES:
        return None
    width = 2 * GROWTH
    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(channels, width, 3, padding=1, bias=False)}
    for n, count in enumerate(LAYERS, start=1):
        if n > 1:
            halve = nn.Conv2d(width, width // 2, 1, bias=False)
            parts[f"down{n - 1}"] = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), halve, nn.AvgPool2d(2))
            width //= 2
        parts[f"stage{n}"] = nn.Sequential(*(DenseLayer(width + GROWTH * i) for i in range(count)))
        width += GROWTH * count
    parts |= {"norm": nn.BatchNorm2d(width), "relu": nn.ReLU()}
    taps = {
        "stem": "stage1.0.relu1",
        "stage1": "down1.1",
        "stage2": "down2.1",
        "stage3": "down3.1",
        "stage4": "relu",
    }
    return Chain(parts, taps, features=width, classes=classes)
