"""VGG for small images, as in the CRD tables.

It has batch norm, three poolings, and one linear classifier on the mean of the last map.
"""

from torch import nn

from pipeline.nets.layers import Chain

DEPTHS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
WIDTHS = {"stem": 64, "stage1": 128, "stage2": 256, "stage3": 512, "stage4": 512}
POOLED_BEFORE = ("stage1", "stage2", "stage3")  # a fourth pooling would leave nothing of an 8 x 8 image
NAMES = tuple(DEPTHS)


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if name not in DEPTHS:
        return None
    parts: dict[str, nn.Module] = {}
    taps: dict[str, str] = {}
    inputs = channels
    for (part, outputs), depth in zip(WIDTHS.items(), DEPTHS[name], strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if part in POOLED_BEFORE else []
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        parts[part] = nn.Sequential(*layers)
        taps[part] = f"{part}.{len(layers) - 1}"
    return Chain(parts, taps, features=inputs, classes=classes)
