"""The random numbers of a view: a hash of seed, row of the store, number of the view, and what they are for.

So a view is the same in any batch, order, process and device, and a teacher's answer to view 7 of an image
can be stored and used again.
"""

import hashlib

import torch
from torch import Tensor

BITS = 21  # of a draw


def draws(rows: Tensor, number: int, seed: int, what: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Three independent random integers of 21 bits for each row.

    They are the bits of the row-th output of SplitMix64, started at a hash of all else.
    """
    text = f"{seed}:{number}:{what}" if what else f"{seed}:{number}"
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
    # the constants are those of SplitMix64 as signed numbers; products wrap around, as it requires
    bits = rows * -0x61C8864680B583EB + start
    bits = (bits ^ _shifted(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shifted(bits, 27)) * -0x6B2FB644ECCEEE15
    bits = bits ^ _shifted(bits, 31)
    low = 2**BITS - 1
    return bits & low, _shifted(bits, BITS) & low, _shifted(bits, 2 * BITS) & low


def below(draw: Tensor, count: int | Tensor) -> Tensor:
    """A draw as an integer from 0 to `count` - 1."""
    return (draw * count) >> BITS


class Draws:
    """The random numbers of one view of some rows, by what they are for."""

    def __init__(self, rows: Tensor, number: int, seed: int) -> None:
        self.rows, self.number, self.seed = rows, number, seed

    def uniform(self, what: str) -> tuple[Tensor, Tensor, Tensor]:
        """Three numbers for each row, from 0 to 1 without 1."""
        a, b, c = (each.float() / 2**BITS for each in draws(self.rows, self.number, self.seed, what))
        return a, b, c

    def happens(self, what: str, probability: float) -> Tensor:
        """For each row, whether something of this probability happens."""
        return self.uniform(f"whether {what}")[0] < probability


def between(uniform: Tensor, low: float, high: float) -> Tensor:
    """A number from 0 to 1 as one from `low` to `high`."""
    return low + uniform * (high - low)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Right shift that brings in zeros. The shift of int64 brings in the sign."""
    return torch.bitwise_and(bits >> by, 2 ** (64 - by) - 1)
