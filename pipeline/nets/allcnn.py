"""AllCNN (Springenberg et al., 2015) in the variant that SRM uses as its student, at any width.

SRM's width on CIFAR is 0.66. `allcnn_stem7` is for images of 224: its first convolution is 7 x 7, and the
first two have stride 2, as its transfer tables need it. Our reading: the paper's text names no layers. It
gives 5.1 million parameters and 1.35 GFLOPs; these layers have 5.07 (200 classes) and 1.30.
"""

from torch import nn

from pipeline.nets.layers import Chain, scaled, width_in

WIDTHS = {"stage1": 96, "stage2": 192, "stage3": 256, "stage4": 384}
NAMES = ("allcnn", "allcnn_x0.66", "allcnn_x<width>", "allcnn_stem7", "allcnn_stem7_x<width>")


def _layer(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    ]


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    width, large = (width_in(name, family, default=1.0) for family in ("allcnn", "allcnn_stem7"))
    if width is None and large is None:
        return None
    parts: dict[str, nn.Module] = {}
    inputs = channels
    for part, full in WIDTHS.items():
        outputs = scaled(full, width or large or 1.0)
        kernel, stride = (7, 2) if large and part == "stage1" else (3, 1)
        last = _layer(outputs, outputs, 1) if part == "stage4" else _layer(outputs, outputs, 3, stride=2)
        first = _layer(inputs, outputs, kernel, stride=stride)
        parts[part] = nn.Sequential(*first, *_layer(outputs, outputs, 3, stride=stride), *last)
        inputs = outputs
    taps = {"stem": "stage1.2"} | {part: f"{part}.8" for part in WIDTHS}
    return Chain(parts, taps, features=inputs, classes=classes)
