"""A student whose parameters are not all in layers, as in ConvNeXt and in vision transformers."""

import torch
from torch import Tensor, nn
from world import World

from pipeline.taps.tapped import Tapped

HEAD = {"head.fc.weight", "head.fc.bias"}


class Block(nn.Module):
    """Scaled, as ConvNeXt's blocks. Half of the scale is used after the tap of the block."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.layer_scale = nn.Parameter(torch.full((outputs, 1, 1), 0.7))
        self.relu = nn.ReLU()
        self.after = nn.Parameter(torch.full((outputs, 1, 1), 1.1))

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.relu(self.layer_scale * self.norm(self.conv(x)))
        return self.after * mapped


class Attention(nn.Module):
    """Its own layer `mix` never runs as a module: only its weight is used, as in nn.MultiheadAttention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Parameter(0.3 * torch.randn(width, width))
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).mT @ self.inputs
        mixed = nn.functional.linear(pixels, self.mix.weight, self.mix.bias)
        return x + mixed.mT.reshape(x.shape)


class Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)) + self.shift)
        return logits


class Owning(nn.Module):
    classifier = "head.fc"

    def __init__(self, size: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.taps = {f"stage{n}": f"block{n}.relu" for n in (1, 2, 3)}
        self.position = nn.Parameter(0.1 * torch.randn(1, 3, size, size))
        self.block1 = Block(3, 8, stride=1)
        self.attention = Attention(8)
        self.block2 = Block(8, 16, stride=2)
        self.block3 = Block(16, 16, stride=2)
        self.temper = nn.Parameter(torch.ones(1))
        self.head = Head(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.attention(self.block1(x + self.position)))
        logits: Tensor = self.head(self.temper * self.block3(x))
        return logits


def owning(world: World) -> World:
    """The world with such a network as its student."""
    torch.manual_seed(0)
    world.student = Tapped(Owning(), world.step(2).images)
    return world


def up_to(stage: int) -> set[str]:
    """The names of the parameters that the map of a stage is computed with, written by hand."""
    block = ("conv.weight", "norm.weight", "norm.bias", "layer_scale")
    names = {"position"} | {f"block{n}.{name}" for n in range(1, stage + 1) for name in block}
    names |= {f"block{n}.after" for n in range(1, stage)}
    attention = {"attention.inputs", "attention.mix.weight", "attention.mix.bias"}
    return names | (attention if stage > 1 else set())
