"""How much memory and disk something needs at its peak."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY = 0.1  # seconds between two looks at the disk


def peak_mb() -> float:
    """Memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@contextmanager
def most_disk(folder: Path) -> Iterator[list[float]]:
    """What the folder holds, in MB, looked at again and again."""
    seen, done = [used_mb(folder)], threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            seen.append(used_mb(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.append(used_mb(folder))


def used_mb(folder: Path) -> float:
    return sum(map(_bytes, folder.rglob("*"))) / 1e6


def _bytes(file: Path) -> int:
    try:
        return 512 * file.stat().st_blocks
    except FileNotFoundError:  # it has gone since
        return 0
