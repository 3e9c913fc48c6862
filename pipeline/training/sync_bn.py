"""Batch norms that see the whole batch while it is shared by several processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.taps import processes

Norm = nn.modules.batchnorm._BatchNorm


@contextmanager
def norms_of_all(modules: Sequence[nn.Module], *, wanted: bool) -> Iterator[None]:
    """Within the block, batch norms in training mode use mean and variance of the images of all processes.

    torch's SyncBatchNorm does this on a GPU alone. The modules stay the same ones, since taps hang on them.
    """
    norms = {norm for module in modules for norm in module.modules() if isinstance(norm, Norm)}
    changed = norms if wanted and processes.count() > 1 else set()
    for norm in changed:
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in changed:
            del norm.forward


def _forward(norm: Norm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    mean, variance, count = _moments(x.float())
    if norm.track_running_stats:
        _remember(norm, mean.detach(), (variance * count / (count - 1)).detach())
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (variance + norm.eps).rsqrt()
    shift = -mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return (x.float() * scale.view(shape) + shift.view(shape)).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over all processes, and how many numbers they are of."""
    variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    count = x.new_full((1,), x.numel() / x.shape[1])
    own = torch.cat([mean, variance, count])
    placed = [own if n == processes.rank() else torch.zeros_like(own) for n in range(processes.count())]
    everyones = processes.sum_of_all(torch.stack(placed))
    means, variances, counts = torch.split(everyones, [len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), counts.sum().detach()


@torch.no_grad()
def _remember(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
