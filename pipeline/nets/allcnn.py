"""AllCNN (Springenberg et al., 2015) in the variant that SRM uses as its student, at any width.

SRM's width on CIFAR is 0.66.
"""

from torch import nn

from pipeline.nets.layers import Chain, scaled, width_in

WIDTHS = {"stage1": 96, "stage2": 192, "stage3": 256, "stage4": 384}
NAMES = ("allcnn", "allcnn_x0.66", "allcnn_x<width>")


def _layer(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    ]


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    width = width_in(name, "allcnn", default=1.0)
    if width is None:
        return None
    parts: dict[str, nn.Module] = {}
    inputs = channels
    for part, full in WIDTHS.items():
        outputs = scaled(full, width)
        last = _layer(outputs, outputs, 1) if part == "stage4" else _layer(outputs, outputs, 3, stride=2)
        parts[part] = nn.Sequential(*_layer(inputs, outputs, 3), *_layer(outputs, outputs, 3), *last)
        inputs = outputs
    taps = {"stem": "stage1.2"} | {part: f"{part}.8" for part in WIDTHS}
    return Chain(parts, taps, features=inputs, classes=classes)
