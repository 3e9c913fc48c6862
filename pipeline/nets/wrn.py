"""Wide ResNets (Zagoruyko and Komodakis, 2016). Their blocks normalise and activate before they convolve.

A block ends in a raw sum. The activation that reads it is at the start of the next part, so the taps are
there.
"""

import re

from torch import Tensor, nn

from pipeline.nets.layers import Chain
from pipeline.settings import InputError

NAMES = ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "wrn_<depth>_<width>")


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        out: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    given = re.fullmatch(r"wrn_(\d{1,4})_(\d{1,2})", name)
    if given is None:
        return None
    depth, width = int(given[1]), int(given[2])
    if depth < 10 or depth % 6 != 4 or width < 1:
        nearest = f"wrn_{max(10, 6 * round((depth - 4) / 6) + 4)}_{max(1, width)}"
        raise InputError(
            f"net: {name!r} cannot be built. A depth is 6 n + 4 (10, 16, 22, ...) and a width at least 1. "
            f"The nearest network is {nearest!r}."
        )
    blocks, widths = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)}
    for n in (1, 2, 3):
        first = Block(widths[n - 1], widths[n], stride=1 if n == 1 else 2)
        rest = [Block(widths[n], widths[n], stride=1) for _ in range(blocks - 1)]
        parts[f"stage{n}"] = nn.Sequential(first, *rest)
    parts |= {"norm": nn.BatchNorm2d(widths[3]), "relu": nn.ReLU()}
    taps = {
        "stem": "stage1.0.relu1",
        "stage1": "stage2.0.relu1",
        "stage2": "stage3.0.relu1",
        "stage3": "relu",
    }
    return Chain(parts, taps, features=widths[3], classes=classes)
