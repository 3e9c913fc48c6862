"""Errors of the system in words: a full disk, a quota, a folder that is read-only or somebody else's."""

import errno
import getpass
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FULL = "There is no space left on the disk"
READ_ONLY = "The disk is read-only"
WORDS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "The quota of this user is used up",
    errno.EFBIG: "The file would be larger than this user may make it",
    errno.EROFS: READ_ONLY,
    errno.ENOENT: "There is no such file or folder",
    errno.EACCES: "This user has no right to do that",
    errno.EPERM: "This user has no right to do that",
    errno.ENOTDIR: "A file is where a folder must be",
    errno.EISDIR: "A folder is where a file must be",
    errno.ENAMETOOLONG: "The name is too long",
    errno.EMFILE: "This process has too many files open",
    errno.EIO: "The disk cannot be read or written",
}
CURES = {
    FULL: "Free some space",
    WORDS[errno.EDQUOT]: "Free some space, or ask for more",
    WORDS[errno.EFBIG]: "Raise the limit (`ulimit -f`)",
    WORDS[errno.EMFILE]: "Raise the limit (`ulimit -n`)",
    WORDS[errno.EIO]: "Look at the disk",
    READ_ONLY: "Use a folder that can be written",
    WORDS[errno.EACCES]: "Change the owner or the rights (`chown`, `chmod`)",
}
OF_OTHERS = {"database or disk is full": errno.ENOSPC, "readonly database": errno.EROFS}


def in_words(error: BaseException) -> str | None:
    """A paragraph on the error of the system that is behind `error`; None if there is none."""
    for each in _behind(error):
        if (number := _number(each)) in WORDS:
            return _paragraph(WORDS[number], _path(each))
    return None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either complete or not there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        is_of_library = isinstance(error, RuntimeError | OSError)  # which often forget to name the cause
        error = error.__cause__ or (error.__context__ if is_of_library else None)


def _number(error: BaseException) -> int | None:
    """The number of the system's error. Libraries that are not written in Python have it in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := re.search(r"os error (\d+)|\bcode: (\d+)", text):
        return int(found[1] or found[2])
    known = OF_OTHERS | {os.strerror(number): number for number in WORDS}
    return next((number for words, number in known.items() if words in text), None)


def _path(error: BaseException) -> str:
    named = getattr(error, "filename", None)
    return os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else ""


def _paragraph(what: str, path: str) -> str:
    place = f": {path}" if path else ""
    room = f" ({_room(Path(path))})" if what == FULL else f" (as {_user()})" if "right" in what else ""
    cure = f" {CURES[what]}, and start again." if what in CURES else ""
    return f"{what}{place}{room}.{cure} Nothing was left half-written."


def _room(path: Path) -> str:
    existing = next((place for place in (path.absolute(), *path.absolute().parents) if place.exists()), None)
    if existing is None:
        return "nothing is known of it"
    usage = shutil.disk_usage(existing)
    return f"{usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB are free"


def _user() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):
        return f"user {os.getuid()}"
