"""The processes that train together, each on its share of a batch.

One process alone gets back what it gives. All processes must call the same functions in the same order.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

BUCKET = 25_000_000  # bytes that are sent at once
BROKEN = ("gloo", "closed by peer", "reset by peer")  # in errors about processes that are gone

T = TypeVar("T")


def count() -> int:
    """How many there are."""
    is_one_of_many = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_one_of_many else 1


def rank() -> int:
    """The number of this one; the first is 0."""
    return distributed.get_rank() if count() > 1 else 0


def of_first(value: T) -> T:
    """The value that the first process has."""
    if count() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]


def of_each(value: T) -> list[T]:
    """The value of each process."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def summed(value: Tensor) -> Tensor:
    """The sum over the processes, without a gradient."""
    return value if count() == 1 else sum_of_all(value.detach())


def sum_of_all(value: Tensor) -> Tensor:
    """The sum over the processes. Its gradient is that of the sum of what all of them compute with it."""
    total: Tensor = _Sum.apply(value)
    return total


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes.

    They are sent in flat buckets, since every call costs time, and all buckets are under way at once.
    """
    if count() == 1:
        return
    sent = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        sent.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        means = torch.split(flat.div_(count()), [tensor.numel() for tensor in bucket])
        for tensor, mean in zip(bucket, means, strict=True):
            tensor.copy_(mean.view(tensor.shape))


def rows_of_all(rows: Tensor, counts: Sequence[int], scale: float) -> Tensor:
    """The rows of all processes, of which each has so many (`counts`), in their order.

    The gradient of what is computed with them comes back to a process for its own rows alone, times `scale`.
    """
    gathered: Tensor = _RowsOfAll.apply(rows, tuple(counts), scale)
    return gathered


def own_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Of the rows of all processes, those of this one."""
    return torch.split(rows, list(counts))[rank()]


def is_gone(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    is_of_backend = isinstance(error, distributed.DistError)
    is_of_gloo = isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)
    return count() > 1 and (is_of_backend or is_of_gloo)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_of_all(gradients[0])


class _RowsOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], scale: float) -> Tensor:
        ctx.counts, ctx.scale = counts, scale
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyones = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(everyones, padded)
        return torch.cat([each[:n] for each, n in zip(everyones, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return own_rows(gradients[0], ctx.counts) * ctx.scale, None, None


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of one kind and of about `BUCKET` bytes."""
    full: list[list[Tensor]] = []
    filling: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = filling.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(each.nbytes for each in bucket) >= BUCKET:
            full.append(filling.pop(tensor.dtype))
    return full + list(filling.values())
