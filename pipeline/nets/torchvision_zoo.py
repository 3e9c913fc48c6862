"""`torchvision:NAME`: every classification network of torchvision."""

from typing import Any

from torch import nn

from pipeline.nets.importable import without_inplace
from pipeline.settings import unknown

PREFIX = "torchvision:"
NAMES = ("torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:<name>")
# without these, googlenet and inception_v3 return more than logits and warn about their initial weights
LOGITS_ONLY = {"aux_logits": False, "init_weights": True}


def available() -> list[str]:
    """The names of torchvision's classification networks."""
    from torchvision import models

    members: list[str] = models.list_models(module=models)
    return members


def member_of(name: str) -> str:
    """torchvision's own name of the network `torchvision:NAME`."""
    member = name.removeprefix(PREFIX)
    if member not in available():
        raise unknown("net", name, (PREFIX + known for known in available()))
    return member


def weights_of(name: str) -> Any:
    """What torchvision tells of its weights for a network: their address, transforms and classes."""
    from torchvision import models

    return models.get_model_weights(member_of(name)).DEFAULT


def has_weights(name: str) -> bool:
    from torchvision import models

    return len(models.get_model_weights(member_of(name))) > 0


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that torchvision's weights for a network were trained with."""
    transforms = weights_of(name).transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if not name.startswith(PREFIX):
        return None
    from torchvision import models

    member = member_of(name)
    options: dict[str, bool] = {}
    if member in ("googlenet", "inception_v3"):
        # their weights were trained on another range of pixels, to which transform_input brings colour images
        options = LOGITS_ONLY | {"transform_input": channels == 3}
    net: nn.Module = models.get_model(member, weights=None, num_classes=classes, **options)
    if channels != 3:
        _take_channels(net, channels)
    if isinstance(net, models.ResNet):
        object.__setattr__(net, "taps", _taps_of_resnet(net))  # the stub of Module allows no other types
    return without_inplace(net)


def _taps_of_resnet(net: nn.Module) -> dict[str, str]:
    """The last activation of each stage. Found by their sizes alone, the stem would count as a stage."""
    last = {f"stage{n}": [*net.get_submodule(f"layer{n}").children()] for n in (1, 2, 3, 4)}
    return {"stem": "relu"} | {
        stage: f"layer{stage[-1]}.{len(blocks) - 1}.relu" for stage, blocks in last.items()
    }


def _take_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for images of `channels` channels, with random weights."""
    path, old = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    same: dict[str, Any] = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **same)
    nn.init.kaiming_normal_(new.weight, nonlinearity="relu")
    parent, _, attribute = path.rpartition(".")
    setattr(net.get_submodule(parent), attribute, new)
