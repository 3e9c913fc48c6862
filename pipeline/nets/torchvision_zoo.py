"""`torchvision:NAME`: every classification network of torchvision."""

from torch import nn

from pipeline.inputs import unknown
from pipeline.nets.importable import without_inplace

PREFIX = "torchvision:"
NAMES = ("torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:<name>")
# Logits only. Their stem takes images normalised as all of torchvision's and brings them to the range their weights were trained on.
SINGLE_OUTPUT = {"aux_logits": False, "init_weights": True}


def available() -> list[str]:
    """The names torchvision knows."""
    from torchvision import models

    return models.list_models(module=models)


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if not name.startswith(PREFIX):
        return None
    from torchvision import models

    member = name.removeprefix(PREFIX)
    if member not in available():
        raise unknown("net", name, (PREFIX + known for known in available()))
    options = SINGLE_OUTPUT | {"transform_input": channels == 3} if member in ("googlenet", "inception_v3") else {}
    net = models.get_model(member, weights=None, num_classes=classes, **options)
    if channels != 3:
        _take_channels(net, channels)
    return without_inplace(net)


def _take_channels(net: nn.Module, channels: int) -> None:
    path, old = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, nonlinearity="relu")
    parent, _, attribute = path.rpartition(".")
    setattr(net.get_submodule(parent), attribute, new)
