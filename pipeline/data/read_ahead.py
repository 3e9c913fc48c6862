"""Pixels of batches to come, read while the network learns from the batch before."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.data.images import Images


class ReadAhead:
    """Reads rows of `images` in a thread of its own, and copies them to the device while that computes."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        self.thread = ThreadPoolExecutor(1)
        self.expected: dict[bytes, Future[Tensor]] = {}

    def expect(self, batches: Iterable[np.ndarray]) -> None:
        """Begin to read the rows of these batches. All that is not among them is dropped."""
        before = self.expected
        self.expected = {
            rows.tobytes(): before.get(rows.tobytes()) or self.thread.submit(self._read, rows)
            for rows in batches
        }

    def read(self, rows: np.ndarray) -> Tensor:
        """uint8 B x H x W x C, on the device. Other callers may get the same tensor."""
        known = self.expected.get(rows.tobytes())
        pixels = known.result() if known else self._read(rows)
        return pixels.to(self.device, non_blocking=True)

    def _read(self, rows: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(self.images[rows])
        return pixels.pin_memory() if self.device.type == "cuda" else pixels
