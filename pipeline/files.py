"""Files and folders that are either complete or not there; locks; hashes."""

import fcntl
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to. It becomes `path` if the block succeeds, and is removed if the block fails."""
    partial = _partial(path)
    try:
        with naming(path):
            yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill. It replaces `path` if the block succeeds, and is removed if the block fails."""
    partial = _partial(path)
    partial.mkdir()
    try:
        with naming(path):
            yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_array(path: Path, array: "np.ndarray") -> None:
    """As np.save, which does not notice that a small array does not fit on the disk."""
    import numpy as np

    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    with naming(path):
        path.write_bytes(content.getbuffer())


def check_room(folder: Path, size: int) -> None:
    """Fail now as a file of so many bytes would. Libraries in C may write a part and say nothing."""
    with naming(folder), TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


def write_at(handle: int, content: "bytes | memoryview", position: int) -> None:
    """Write all of it: one call may write a part, as when the disk is nearly full."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(handle, rest, position)
        rest, position = rest[written:], position + written


def _partial(path: Path) -> Path:
    """Beside `path`, so that a rename is enough; the name differs from process to process.

    What killed processes left there is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        process = other.name.removeprefix(f"{path.name}.").removesuffix(".partial")
        if process.isdecimal() and not _is_another(int(process)):
            remove(other)
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _is_another(process: int) -> bool:
    """Whether another process has this number. A name with our own is from a process that had it before."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return process != os.getpid()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system that names no file, as when a disk is full, gets the name `path`."""
    try:
        yield
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None:
            if isinstance(behind, OSError) and behind.errno is not None and behind.filename is None:
                behind.filename = str(path)
            behind = behind.__context__
        raise


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a file for one process at a time. The system frees the lock when the process ends, in any way.

    With `wait=False`, a lock that another process holds raises BlockingIOError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def held(path: Path) -> bool:
    """Whether a process holds this lock.

    The check takes the lock for a moment. Use it only where the other processes wait for the lock.
    """
    try:
        with locked(path, wait=False):
            return False
    except BlockingIOError:
        return True


def sha256(path: Path) -> str:
    """Hash of a file, or of all files below a folder together with their names."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
