"""A network without batch norm: a batch changes it by the mean of what its images do."""

import torch
from torch import Tensor, nn
from world import World

from pipeline.taps.tapped import Tapped


class Batchless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def batchless(world: World) -> World:
    """The world with such a network as its student."""
    torch.manual_seed(0)
    world.student = Tapped(Batchless(), world.step(2).images)
    return world


class Staged(nn.Module):
    """A network without batch norm whose maps end in activations, as those of our networks."""

    classifier = "head"

    def __init__(self) -> None:
        super().__init__()
        self.taps = {name: f"{name}.1" for name in ("stem", "stage1", "stage2", "stage3")}
        widths = {"stem": (3, 6, 1), "stage1": (6, 6, 1), "stage2": (6, 8, 2), "stage3": (8, 12, 2)}
        for name, (inputs, outputs, stride) in widths.items():
            layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
            self.add_module(name, nn.Sequential(layer, nn.ReLU()))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.taps:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
