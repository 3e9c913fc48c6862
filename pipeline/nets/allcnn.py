"""The variant of AllCNN (Springenberg et al., 2015) that SRM's experiments use as their student, at any width (theirs on CIFAR is 0.66)."""

from torch import nn

from pipeline.nets.layers import Chain, scaled, width_in

STAGES = {"stage1": 96, "stage2": 192, "stage3": 256, "stage4": 384}
NAMES = ("allcnn", "allcnn_x0.66", "allcnn_x<width>")


def _layer(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    width = width_in(name, "allcnn", default=1.0)
    if width is None:
        return None
    parts: dict[str, nn.Module] = {}
    inputs = channels
    for stage, full in STAGES.items():
        outputs = scaled(full, width)
        last = _layer(outputs, outputs, 1) if stage == "stage4" else _layer(outputs, outputs, 3, stride=2)
        parts[stage] = nn.Sequential(*_layer(inputs, outputs, 3), *_layer(outputs, outputs, 3), *last)
        inputs = outputs
    return Chain(parts, {"stem": "stage1.2"} | {stage: f"{stage}.8" for stage in STAGES}, features=inputs, classes=classes)
