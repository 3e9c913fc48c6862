"""ResNets for small images (He et al., 2016, section 4.2), and the wider ones (x4) of the CRD tables.

`resnet8_x0.67` has two thirds of the channels of `resnet8` in each layer, as the students of Knowledge
Representing have.
"""

from torch import Tensor, nn

from pipeline.nets.layers import Chain, conv_norm, conv_norm_relu, scaled, width_in

SIZES = {f"resnet{depth}": (depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 26, 32, 44, 56, 110)}
SIZES |= {f"resnet{depth}x4": (depth, (32, 64, 128, 256)) for depth in (8, 32)}
NAMES = (*SIZES, "resnet<depth>_x<width>")


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, outputs, 3, stride=stride)
        self.relu1 = nn.ReLU()
        self.conv2 = conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride=stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))
        return out


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    family = name.partition("_x")[0]
    width = width_in(name, family, default=1.0) if family in SIZES else None
    if width is None:
        return None
    depth, full = SIZES[family]
    widths = [scaled(each, width) for each in full]
    blocks = (depth - 2) // 6
    parts: dict[str, nn.Module] = {"stem": conv_norm_relu(channels, widths[0], 3)}
    for n in (1, 2, 3):
        first = Block(widths[n - 1], widths[n], stride=1 if n == 1 else 2)
        rest = [Block(widths[n], widths[n], stride=1) for _ in range(blocks - 1)]
        parts[f"stage{n}"] = nn.Sequential(first, *rest)
    taps = {"stem": "stem.2"} | {f"stage{n}": f"stage{n}.{blocks - 1}.relu2" for n in (1, 2, 3)}
    return Chain(parts, taps, features=widths[3], classes=classes)
