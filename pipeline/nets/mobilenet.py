"""MobileNet (Howard et al., 2017) with its width multiplier. The stem keeps the size of a small image."""

from torch import nn

from pipeline.nets.layers import Chain, conv_norm_relu, scaled, width_in

WIDTHS = {"stage1": (64, 128, 128), "stage2": (256, 256), "stage3": (512,) * 6, "stage4": (1024, 1024)}
NAMES = ("mobilenet", "mobilenet_x0.75", "mobilenet_x0.5", "mobilenet_x0.25", "mobilenet_x<width>")


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    width = width_in(name, "mobilenet", default=1.0)
    if width is None:
        return None
    inputs = scaled(32, width)
    parts: dict[str, nn.Module] = {"stem": conv_norm_relu(channels, inputs, 3)}
    taps = {"stem": "stem.2"}
    for part, widths in WIDTHS.items():
        layers: list[nn.Module] = []
        for n, full in enumerate(widths):
            outputs = scaled(full, width)
            shrinks = n == (1 if part == "stage1" else 0)  # the 64 channels keep the size of the image
            layers += [
                *conv_norm_relu(inputs, inputs, 3, stride=2 if shrinks else 1, groups=inputs),
                *conv_norm_relu(inputs, outputs, 1),
            ]
            inputs = outputs
        parts[part] = nn.Sequential(*layers)
        taps[part] = f"{part}.{len(layers) - 1}"
    return Chain(parts, taps, features=inputs, classes=classes)
