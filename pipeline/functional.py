"""Pure maths on tensors: no state, no networks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """uint8 images B x H x W x C to float B x C x H x W, `(x / 255 - mean) / std` a channel."""
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    return (images.permute(0, 3, 1, 2).float() - 255 * mean) * (1 / (255 * std))


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))`, mean over the batch (Hinton et al., 2015)."""
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps brought to the smaller height and width of both by adaptive average pooling."""
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pool_to(a, height, width), pool_to(b, height, width)


def pool_to(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling. Where the sizes divide, the rows that make one new row, laid end to end, times a constant matrix:
    forward and backward four times faster on a CPU than `avg_pool2d`."""
    if x.shape[2:] == (height, width):
        return x
    if x.shape[2] % height or x.shape[3] % width:
        return F.adaptive_avg_pool2d(x, (height, width))
    rows, columns = x.shape[2] // height, x.shape[3] // width
    mean = torch.eye(width, dtype=x.dtype, device=x.device).repeat_interleave(columns, 0).repeat(rows, 1) / (rows * columns)
    return x.reshape(*x.shape[:2], height, rows * x.shape[3]) @ mean


def squared_distances(x: Tensor) -> Tensor:
    """Between the rows, B x B, by the Gram matrix. Points nearer than its rounding error are one point: 0, without a gradient."""
    x = x - x.mean(0)  # or else it loses small distances far from the origin
    gram = x @ x.T
    squares = gram.diagonal()
    sums = squares[:, None] + squares
    distances = sums - 2 * gram
    return torch.where(distances > 8 * torch.finfo(x.dtype).eps * sums, distances, 0)


def attention(features: Tensor) -> Tensor:
    """Where a map is active: the mean over channels of its squares, B x HW, rows of length one (Zagoruyko & Komodakis, 2017)."""
    return F.normalize(features.pow(2).mean(1).flatten(1))


def attention_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention of two maps brought to one size."""
    student, teacher = match_size(student, teacher)
    return F.mse_loss(attention(student), attention(teacher))
