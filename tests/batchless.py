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
