"""Dynamic batching: while one batch runs, the next one fills. An image that arrives alone does not wait."""

import asyncio
from collections.abc import Callable

import numpy as np


class Busy(Exception):
    """More images are waiting than are allowed."""


class Batcher:
    """Tasks of one event loop call `await batcher.answer(images)`.

    `run` answers one batch at a time, in a thread.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], *, max_batch: int, max_waiting: int) -> None:
        self.run = run
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.answered = self.batches = 0
        self._waiting: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def answer(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """What `run` returns for each of these images; raises Busy if too many would be waiting."""
        if self.waiting + len(images) > self.max_waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in images]
        self._waiting += zip(images, answers, strict=True)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*answers))
        finally:
            for answer in answers:
                answer.cancel()  # matters if the caller has left; a finished answer stays as it is

    async def work(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._arrived.wait()
            self._waiting = [(image, answer) for image, answer in self._waiting if not answer.done()]
            batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
            if not self._waiting:
                self._arrived.clear()
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[np.ndarray, "asyncio.Future[np.ndarray]"]]) -> None:
        try:
            rows = await asyncio.to_thread(self.run, np.stack([image for image, _ in batch]))
        except Exception as error:  # only the callers in this batch get it; the others are still answered
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        self.answered += len(batch)
        self.batches += 1
        for (_, answer), row in zip(batch, rows, strict=True):
            if not answer.done():
                answer.set_result(row)
