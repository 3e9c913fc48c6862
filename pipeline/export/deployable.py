"""The network as it is deployed: pixels in, answers out."""

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.images import Images
from pipeline.functional import normalise

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 images N x H x W x C to (logits, probabilities)."""

PIXELS = 1_000_000  # images of so many pixels run at once


def in_batches(images: Images, count: int, batch: int | None = None) -> Iterator[np.ndarray]:
    """The first `count` images in batches, each read when it is its turn.

    Without a size of batches, they are as large as fits into memory.
    """
    step = batch or max(1, PIXELS // int(images.shape[1] * images.shape[2]))
    starts = range(0, count, step)
    return (np.ascontiguousarray(images[start : min(start + step, count)]) for start in starts)


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def plain_pools(net: nn.Module) -> nn.Module:
    """Replace the network's pools to one pixel by plain means; returns the same network.

    torch exports such a pool as ten small operators.
    """
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean().train(child.training))
    return net


class Deployable(nn.Module):
    """uint8 images N x H x W x C to (logits, probabilities). This is exported, and evaluation runs it.

    The probabilities are the softmax of `logits / temperature`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], *, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.training = net.training  # the wrapper has no mode of its own

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(normalise(images, self.mean, self.std))
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return logits, scaled.softmax(1)

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits, probabilities) of a batch of pixels, in evaluation mode."""
        assert images.dtype == np.uint8, images.dtype
        assert not any(module.training for module in self.modules()), "call .eval() first"
        with torch.inference_mode():
            logits, probabilities = self(torch.tensor(images, device=self.mean.device))
        return logits.cpu().numpy(), probabilities.cpu().numpy()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits of a batch of pixels, in evaluation mode."""
        return self.outputs(images)[0]

    def exact(self, images: np.ndarray) -> np.ndarray:
        """Logits computed in float64, that is, without the rounding of float32."""
        with torch.inference_mode():
            pixels = normalise(torch.tensor(images, device=self.mean.device), self.mean, self.std).double()
            logits: Tensor = copy.deepcopy(self.net).double()(pixels)
            return logits.cpu().numpy()
