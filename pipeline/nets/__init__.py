"""Networks by name: CIFAR families, anything of torchvision, anything importable.

A family is a file here that offers `NAMES` and `build(name, classes, channels)`, which answers None to a name that isn't its own.
Every network is a plain `forward(images) -> logits`. Those of our own families also say where their stages end (`net.taps`:
stage name -> path of the module whose output is that stage's map, shallow to deep) and which linear layer classifies (`net.classifier`).
"""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.inputs import InputError, Settings, unknown

if TYPE_CHECKING:  # `import pipeline.nets` stays cheap
    from torch import nn


class NetConfig(Settings):
    net: str = Field(description="a name of pipeline.nets.names(), torchvision:NAME or package.module:factory")
    taps: dict[str, str] = Field(default_factory=dict, description="stage name -> module path, instead of the network's own")


def names() -> tuple[str, ...]:
    """Every plain name, and a pattern such as `wrn_<depth>_<width>` where a family has endless members."""
    return tuple(name for family in _families() for name in family.NAMES)


def build(name: str, classes: int, channels: int = 3) -> "nn.Module":
    """A network with random weights for images of `channels` channels and `classes` classes."""
    assert classes > 0, classes
    assert channels > 0, channels
    for family in _families():
        net = family.build(name, classes, channels)
        if net is not None:
            return net
    from pipeline.nets import torchvision_zoo

    if name in torchvision_zoo.available():  # the nearest of our names would be the wrong advice
        raise InputError(f"net: there is no {name!r} among the CIFAR networks, but torchvision has one: write 'torchvision:{name}'.")
    raise unknown("net", name, names())


def _families() -> Iterator[ModuleType]:
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        if hasattr(module, "NAMES"):
            yield module
