"""What a stage has told so far, in a file while it trains: `make live` shows it in MLflow (pipeline/track/follow.py).

Training itself knows nothing of MLflow and waits for nobody; where nobody looks on, nothing is left of the file in the end.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpoint import atomic_file
from pipeline.locks import locked
from pipeline.record import Record

EVERY = 2.0  # seconds between two writings
FOLLOWER = "follower.lock"  # of the process that looks on, which touches it at every look
PATIENCE = 30.0  # seconds after which it doesn't any more


@contextmanager
def shown(told: Record, file: Path) -> Iterator[Callable[[], None]]:
    """What to call when `told` has new points."""
    written = time.monotonic()

    def tell() -> None:
        nonlocal written
        if time.monotonic() - written > EVERY:
            _write(told, file, "RUNNING")
            written = time.monotonic()

    status = "FAILED"
    with locked(lock_of(file)):
        try:
            yield tell
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if told.curves and _followed(file.with_name(FOLLOWER)):
                _write(told, file, status)
            else:
                file.unlink(missing_ok=True)
                lock_of(file).unlink(missing_ok=True)


def _write(told: Record, file: Path, status: str) -> None:
    so_far = {key: getattr(told, key) for key in ("id", "stage", "name", "params", "curves")}
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(so_far | {"status": status}))


def _followed(lock: Path) -> bool:
    return lock.exists() and time.time() - lock.stat().st_mtime < PATIENCE


def lock_of(file: Path) -> Path:
    """Of the process that writes the file: who dies leaves it free."""
    return file.with_suffix(".lock")
