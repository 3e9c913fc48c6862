"""What our own families share."""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from pipeline.settings import InputError


class Chain(nn.Sequential):
    """Named parts in sequence, then the mean over height and width, then one linear classifier."""

    taps: dict[str, str]
    classifier = "fc"

    def __init__(
        self, parts: dict[str, nn.Module], taps: dict[str, str], *, features: int, classes: int
    ) -> None:
        head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(features, classes)}
        super().__init__(OrderedDict(parts | head))
        self.taps = taps
        initialise(self)


def initialise(net: nn.Module) -> None:
    """Random weights for all convolutions (He et al., 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            # fan-in counts the inputs of one group; fan-out would make depthwise weights far too small
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ChannelShuffle(nn.Module):
    """Transpose the channels, read as a table of groups x channels, so that each group gets channels of all.

    The batch size does not appear, so an exported graph takes batches of any size.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def conv_norm(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(*conv_norm(inputs, outputs, kernel, stride=stride, groups=groups), nn.ReLU())


def width_in(name: str, family: str, *, default: float) -> float | None:
    """The width in `family` (the default) or `family_x<width>`; None for the name of another family."""
    if name == family:
        return default
    given = re.fullmatch(rf"{family}_x(\d+(?:\.\d+)?)", name)
    if given is None:
        return None
    width = float(given[1])
    if not 0.1 <= width <= 10:
        raise InputError(
            f"net: {name!r} has the width {width:g}. Choose one from 0.1 to 10, such as {family}_x0.5."
        )
    return width


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded down."""
    return int(channels * width + 1e-9)  # 0.29 * 100 is 28.999999999999996
