"""Where an unfinished training keeps its state."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.files import locked
from pipeline.settings import InputError

ANSWERS = "answers"  # what teachers answered to fixed views, beside the work folders
PRECISIONS = "precision"  # what precision auto stands for, in the same place


@contextmanager
def work_folder(
    work: Path, stage: str, name: str, depends: Mapping[str, Any], *, is_main: bool
) -> Iterator[Path]:
    """A folder below `work` for exactly these settings, inputs and code (`depends`).

    If the training stops, the folder stays, so that the stage continues from there next time. When the
    training is done, the folder is removed. A second process that trains the same thing is refused.
    """
    key = json.dumps([stage, name, depends], sort_keys=True, default=str)
    folder = work / f"{stage}-{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not is_main:
        yield folder
        return
    lock = folder / "lock"
    try:
        with locked(lock, wait=False):
            try:
                yield folder
            except InputError:
                if all(file == lock for file in folder.iterdir()):  # refused before anything was trained
                    shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)
    except BlockingIOError as error:
        raise InputError(
            f"{stage} {name} is already being trained by another process (lock {lock}). Wait for it, or stop "
            "that process."
        ) from error
