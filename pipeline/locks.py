"""Locks that files stand for: the system frees them when their process ends, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time; who doesn't want to wait gets a BlockingIOError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def held(path: Path) -> bool:
    """Whether some process has this lock. Only for locks that are waited for: to ask is to take it for a moment."""
    try:
        with locked(path, wait=False):
            return False
    except BlockingIOError:
        return True
