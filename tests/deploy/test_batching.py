import asyncio
import threading
import time

import numpy as np
import pytest

from pipeline.deploy.batching import Batcher, Busy


def image(number: int) -> np.ndarray:
    return np.array([number])


def test_while_one_batch_runs_the_next_one_fills() -> None:
    sizes: list[int] = []
    release = threading.Event()

    def run(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        release.wait(5)
        return images * 10

    async def calls() -> list[int]:
        batcher = Batcher(run, max_batch=8, max_waiting=100)
        worker = asyncio.create_task(batcher.work())
        first = asyncio.create_task(batcher.answer([image(0)]))
        while not sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.answer([image(n)])) for n in range(1, 12)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 11
        release.set()
        answers = [int(answer[0][0]) for answer in [await first, *await asyncio.gather(*others)]]
        worker.cancel()
        assert (batcher.answered, batcher.batches) == (12, 3)
        return answers

    assert asyncio.run(calls()) == [10 * n for n in range(12)]
    assert sizes == [1, 8, 3]


def test_a_request_may_be_larger_than_a_batch_or_empty() -> None:
    async def calls() -> None:
        batcher = Batcher(lambda images: images + 1, max_batch=4, max_waiting=100)
        worker = asyncio.create_task(batcher.work())
        assert [int(row[0]) for row in await batcher.answer([image(n) for n in range(10)])] == list(
            range(1, 11)
        )
        assert await batcher.answer([]) == []
        worker.cancel()

    asyncio.run(calls())


def test_too_many_images_are_refused_and_callers_who_left_are_not_answered() -> None:
    ran: list[int] = []

    def run(images: np.ndarray) -> np.ndarray:
        ran.extend(int(each[0]) for each in images)
        return images

    async def calls() -> None:
        batcher = Batcher(run, max_batch=4, max_waiting=3)
        waiting = [asyncio.create_task(batcher.answer([image(n)])) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batcher.answer([image(3)])
        waiting[1].cancel()
        await asyncio.sleep(0)
        worker = asyncio.create_task(batcher.work())
        assert [int((await each)[0][0]) for each in (waiting[0], waiting[2])] == [0, 2]
        worker.cancel()

    asyncio.run(calls())
    assert ran == [0, 2]


def test_a_failing_batch_fails_only_the_callers_in_it() -> None:
    def run(images: np.ndarray) -> np.ndarray:
        if (images == 13).any():
            raise RuntimeError("unlucky")
        return images

    async def calls() -> None:
        batcher = Batcher(run, max_batch=2, max_waiting=100)
        worker = asyncio.create_task(batcher.work())
        bad = asyncio.create_task(batcher.answer([image(13), image(1), image(2)]))
        with pytest.raises(RuntimeError, match="unlucky"):
            await bad
        assert int((await batcher.answer([image(3)]))[0][0]) == 3
        worker.cancel()

    asyncio.run(calls())


def test_a_single_image_is_answered_at_once() -> None:
    async def calls() -> float:
        batcher = Batcher(lambda images: images, max_batch=64, max_waiting=100)
        worker = asyncio.create_task(batcher.work())
        await batcher.answer([image(0)])
        begun = time.perf_counter()
        for _ in range(20):
            await batcher.answer([image(0)])
        worker.cancel()
        return (time.perf_counter() - begun) / 20

    assert asyncio.run(calls()) < 0.05
