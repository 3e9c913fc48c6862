"""Where an unfinished training keeps its state."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.files import locked
from pipeline.settings import InputError
from pipeline.taps import processes

LOCK = "lock"
ANSWERS = "answers"  # what teachers answered to fixed views, beside the work folders
PRECISIONS = "precision"  # what precision auto stands for, in the same place


@contextmanager
def work_folder(
    work: Path, stage: str, name: str, depends: Mapping[str, Any], *, is_main: bool
) -> Iterator[Path]:
    """A folder below `work` for exactly these settings, inputs and code (`depends`).

    If the training stops, the folder stays, so that the stage continues from there next time. When the
    training is done, the folder is removed. A second process that trains the same thing is refused.

    Of several processes that train together, the main one holds the lock for all, and writes. The others may
    have another disk.
    """
    folder = work / f"{stage}-{name}-{_digest([stage, name, depends])}"
    try:
        _check_alike(f"{stage} {name}", depends)
        with ExitStack() as stack:
            refused = _take(folder, f"{stage} {name}", stack) if is_main else ""
            if refused := processes.of_first(refused):
                raise InputError(refused)
            try:
                yield folder
            except InputError:
                if is_main and all(file == folder / LOCK for file in folder.iterdir()):  # nothing was trained
                    shutil.rmtree(folder)
                raise
            if is_main:
                shutil.rmtree(folder)
    except RuntimeError as error:
        if processes.is_gone(error):
            raise InputError(
                f"{stage} {name}: another process of this training has ended, so this one ends, too. What "
                "that process said is the reason."
            ) from error
        raise


def _take(folder: Path, what: str, stack: ExitStack) -> str:
    """Lock the folder until the stack ends; returns why it cannot be, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(locked(folder / LOCK, wait=False))
    except BlockingIOError:
        return (
            f"{what} is already being trained by another process (lock {folder / LOCK}). Wait for it, or "
            "stop that process."
        )
    return ""


def _check_alike(what: str, depends: Mapping[str, Any]) -> None:
    """Refuse processes that would train different things, as when a machine has other files."""
    named = {**depends, **depends.get("inputs", {})}
    first, *others = processes.of_each({key: _digest(value) for key, value in named.items()})
    for n, other in enumerate(others, start=1):
        if different := sorted(key for key in first if other.get(key) != first[key] and key != "inputs"):
            raise InputError(
                f"{what}: process {n} has other {', '.join(different)} than process 0. Give all machines the "
                "same files (the same commit, then `dvc pull`)."
            )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
