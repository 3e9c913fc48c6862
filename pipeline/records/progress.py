"""The curves of a stage that is training right now, in a file that `make live` reads (track/follow.py).

Training neither imports MLflow nor waits for it. If nobody follows, the file is removed at the end.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.files import atomic_file, held, locked
from pipeline.records.record import Curves, Record, recording

EVERY = 2.0  # seconds between two writes
FOLLOWER = "follower.lock"  # the follower holds this lock, and touches it whenever it reads the files
PATIENCE = 30.0  # seconds; after so long without a touch, nobody is following

OnPoint = Callable[[str, Curves], None]


@contextmanager
def recording_training(
    path: Path, stage: str, name: str, settings: Mapping[str, Any], *, work: Path, write: bool
) -> Iterator[tuple[Record, OnPoint]]:
    """The record of a stage that trains, and the function to call at each point of its curves."""
    with (
        recording(path, stage, name, dict(settings), write=write) as record,
        progress(record, work / "live", write=write) as on_point,
    ):
        yield record, on_point


@contextmanager
def progress(record: Record, folder: Path, *, write: bool = True) -> Iterator[OnPoint]:
    """Yield a function to call with a curve's name and its points so far. It also puts them into `record`.

    Of several processes, only the one with `write` writes the file.
    """
    if not write:
        yield lambda name, curves: None
        return
    _sweep(folder, record)
    file = folder / f"{record.stage}-{record.name}-{record.id}.json"
    written = time.monotonic()

    def on_point(name: str, curves: Curves) -> None:
        nonlocal written
        record.curves[name] = curves
        if time.monotonic() - written > EVERY:
            _write(record, file, "RUNNING")
            written = time.monotonic()

    status = "FAILED"
    with locked(lock_of(file)):
        try:
            yield on_point
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if record.curves and is_followed(folder):
                _write(record, file, status)
            else:
                _remove(file)


def is_followed(folder: Path) -> bool:
    lock = folder / FOLLOWER
    return lock.exists() and time.time() - lock.stat().st_mtime < PATIENCE


def lock_of(file: Path) -> Path:
    """The lock of the process that writes the file: free as soon as that process has ended in any way."""
    return file.with_suffix(".lock")


def _sweep(folder: Path, record: Record) -> None:
    """Remove what killed tries of this stage left, unless somebody follows, who still has to read it."""
    for lock in folder.glob(f"{record.stage}-{record.name}-*.lock"):
        if not is_followed(folder) and not held(lock):
            _remove(lock.with_suffix(".json"))


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    lock_of(file).unlink(missing_ok=True)


def _write(record: Record, file: Path, status: str) -> None:
    so_far = {key: getattr(record, key) for key in ("id", "stage", "name", "params", "curves")}
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(so_far | {"status": status}))
