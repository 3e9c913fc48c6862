"""Networks by name: our own families, all networks of torchvision and timm, ONNX files, anything importable.

A family is a file of this folder with `NAMES` and `build(name, classes, channels)`, which returns None for a
name that is not its own. Every network is a plain `forward(images) -> logits`. Networks of our own families
also say where their maps are (`net.taps`: name -> path of the module whose output is the map, from shallow to
deep) and which linear layer classifies (`net.classifier`).
"""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.nets.input import InputConfig
from pipeline.settings import InputError, Settings, unknown

if TYPE_CHECKING:  # so that `import pipeline.nets` does not load torch
    from torch import nn


class NetConfig(Settings):
    """A network, how it takes its images, and where its maps are."""

    net: str = Field(
        description="a name of pipeline.nets.names(), torchvision:NAME, timm:NAME, package.module:factory, "
        "or onnx:FILE (a teacher that only answers)"
    )
    input: InputConfig = InputConfig()
    taps: dict[str, str] = Field(
        default_factory=dict,
        description="name of a tap -> path of a module, instead of the network's own taps",
    )


def names() -> tuple[str, ...]:
    """Every name, and a pattern such as `wrn_<depth>_<width>` for a family with any number of members."""
    return tuple(name for family in _families() for name in family.NAMES)


def build(name: str, classes: int, channels: int = 3) -> "nn.Module":
    """A network with random weights for images of `channels` channels and `classes` classes."""
    assert classes > 0, classes
    assert channels > 0, channels
    for family in _families():
        net: nn.Module | None = family.build(name, classes, channels)
        if net is not None:
            return net
    from pipeline.nets import torchvision_zoo

    if name in torchvision_zoo.available():  # the nearest of our own names would be wrong advice
        raise InputError(
            f"net: there is no {name!r} among our own networks, but torchvision has one. Write "
            f"'torchvision:{name}'."
        )
    raise unknown("net", name, names())


def _families() -> Iterator[ModuleType]:
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        if hasattr(module, "NAMES"):
            yield module
