"""MobileNetV2 for small images, as in the CRD tables: `mobilenetv2` has expansion 6 and half the width.

Its blocks end without an activation (linear bottlenecks), so the taps are the sums at the end of blocks.
"""

from torch import Tensor, nn

from pipeline.nets.layers import Chain, conv_norm, conv_norm_relu, scaled, width_in

# part -> rows of (expansion, channels, blocks, stride of the first block)
PARTS = {
    "stage1": ((1, 16, 1, 1), (6, 24, 2, 1)),
    "stage2": ((6, 32, 3, 2),),
    "stage3": ((6, 64, 4, 2), (6, 96, 3, 1)),
    "stage4": ((6, 160, 3, 2), (6, 320, 1, 1)),
}
NAMES = ("mobilenetv2", "mobilenetv2_x1.0", "mobilenetv2_x<width>")


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = conv_norm_relu(inputs, hidden, 1)
        self.depthwise = conv_norm_relu(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = conv_norm(hidden, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.adds else out


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    width = width_in(name, "mobilenetv2", default=0.5)
    if width is None:
        return None
    inputs = scaled(32, width)
    parts: dict[str, nn.Module] = {"stem": conv_norm_relu(channels, inputs, 3, stride=2)}
    for part, rows in PARTS.items():
        blocks = []
        for expansion, full, count, stride in rows:
            for n in range(count):
                outputs = scaled(full, width)
                blocks.append(Block(inputs, outputs, expansion=expansion, stride=stride if n == 0 else 1))
                inputs = outputs
        parts[part] = nn.Sequential(*blocks)
    features = scaled(1280, max(width, 1.0))
    parts["last"] = conv_norm_relu(inputs, features, 1)
    taps = {"stem": "stem.2"} | {part: part for part in PARTS}
    return Chain(parts, taps, features=features, classes=classes)
