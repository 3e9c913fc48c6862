import asyncio
import threading
import time

import numpy as np
import pytest

from pipeline.deploy.batching import Batcher, Busy


def image(number: int) -> np.ndarray:
    return np.array([number])


def test_while_one_batch_runs_the_next_one_gathers() -> None:
    sizes: list[int] = []
    release = threading.Event()

    def run(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        release.wait(5)
        return images * 10

    async def scene() -> list[int]:
        batcher = Batcher(run, most=8, waiting=100)
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

    assert asyncio.run(scene()) == [10 * n for n in range(12)]
    assert sizes == [1, 8, 3]


def test_one_request_larger_than_a_batch_and_an_empty_one() -> None:
    async def scene() -> None:
        batcher = Batcher(lambda images: images + 1, most=4, waiting=100)
        worker = asyncio.create_task(batcher.work())
        assert [int(row[0]) for row in await batcher.answer([image(n) for n in range(10)])] == list(range(1, 11))
        assert await batcher.answer([]) == []
        worker.cancel()

    asyncio.run(scene())


def test_too_many_are_sent_away_and_those_who_left_are_not_answered() -> None:
    ran: list[int] = []

    def run(images: np.ndarray) -> np.ndarray:
        ran.extend(int(each[0]) for each in images)
        return images

    async def scene() -> None:
        batcher = Batcher(run, most=4, waiting=3)
        waiting = [asyncio.create_task(batcher.answer([image(n)])) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batcher.answer([image(3)])
        waiting[1].cancel()
        await asyncio.sleep(0)
        worker = asyncio.create_task(batcher.work())
        assert [int((await each)[0][0]) for each in (waiting[0], waiting[2])] == [0, 2]
        worker.cancel()

    asyncio.run(scene())
    assert ran == [0, 2]


def test_a_failing_batch_fails_only_those_in_it() -> None:
    def run(images: np.ndarray) -> np.ndarray:
        if (images == 13).any():
            raise RuntimeError("unlucky")
        return images

    async def scene() -> None:
        batcher = Batcher(run, most=2, waiting=100)
        worker = asyncio.create_task(batcher.work())
        bad = asyncio.create_task(batcher.answer([image(13), image(1), image(2)]))
        with pytest.raises(RuntimeError, match="unlucky"):
            await bad
        assert int((await batcher.answer([image(3)]))[0][0]) == 3
        worker.cancel()

    asyncio.run(scene())


def test_nobody_waits_for_company() -> None:
    async def scene() -> float:
        batcher = Batcher(lambda images: images, most=64, waiting=100)
        worker = asyncio.create_task(batcher.work())
        await batcher.answer([image(0)])
        begun = time.perf_counter()
        for _ in range(20):
            await batcher.answer([image(0)])
        worker.cancel()
        return (time.perf_counter() - begun) / 20

    assert asyncio.run(scene()) < 0.05
