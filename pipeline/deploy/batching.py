"""Dynamic batching: while one batch runs, the next one gathers. Nobody waits for company, and a crowd is answered at once."""

import asyncio
from collections.abc import Callable

import numpy as np


class Busy(Exception):
    """More images wait than may."""


class Batcher:
    """`await batcher.answer(images)` from any number of tasks of one loop; `run` is called with one batch at a time, in a thread."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], *, most: int, waiting: int) -> None:
        self.run = run
        self.most = most
        self.limit = waiting
        self.answered = self.batches = 0
        self._waiting: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        self._there = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def answer(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """What `run` gives for each of these images; Busy where they would be too many."""
        if self.waiting + len(images) > self.limit:
            raise Busy
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in images]
        self._waiting += zip(images, answers, strict=True)
        self._there.set()
        try:
            return list(await asyncio.gather(*answers))
        finally:
            for answer in answers:
                answer.cancel()  # whoever asked has left; an answer that is there already stays

    async def work(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._there.wait()
            self._waiting = [(image, answer) for image, answer in self._waiting if not answer.done()]
            batch, self._waiting = self._waiting[: self.most], self._waiting[self.most :]
            if not self._waiting:
                self._there.clear()
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[np.ndarray, "asyncio.Future[np.ndarray]"]]) -> None:
        try:
            rows = await asyncio.to_thread(self.run, np.stack([image for image, _ in batch]))
        except Exception as error:  # it belongs to those who asked; the others are still to be answered
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        self.answered += len(batch)
        self.batches += 1
        for (_, answer), row in zip(batch, rows, strict=True):
            if not answer.done():
                answer.set_result(row)
