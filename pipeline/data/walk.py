"""The files below a folder of images, and their bytes. Hidden files and folders are passed over."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.decode import READS_AVIF, READS_HEIC, SUFFIXES, Undecodable
from pipeline.data.left_out import LeftOut, named
from pipeline.settings import InputError

MAX_BYTES = 1 << 30  # of one file; a file is read whole
PARTIAL = frozenset({".part", ".partial", ".crdownload", ".download"})
CONVERT = "this format is not read; convert it to JPEG or PNG"
HEIC = CONVERT + ", or install pillow-heif"
# pictures that people have, but that are not read
UNREAD = (
    {suffix: CONVERT for suffix in (".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw")}
    | ({} if READS_AVIF else {".avif": CONVERT + ", or install a newer Pillow"})
    | ({} if READS_HEIC else {".heic": HEIC, ".heif": HEIC, ".hif": HEIC})
)


@dataclass(frozen=True)
class Walked:
    """What lies below a folder. Paths are relative to it, and sorted."""

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)  # links to folders, not followed
    bad: list[LeftOut] = field(default_factory=list)  # neither files nor folders, and unreadable folders


def walk_root(root: Path, where: str, remedy: str) -> Walked:
    """All that lies below `root`, a folder or a link to one. Links to folders below it are refused."""
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{where}: the folder of images {kind}. {remedy}")
    walked = walk(root)
    _refuse_names(walked, where)
    _refuse_links(root, walked, where)
    return walked


def check_watched(root: Path, where: str) -> None:
    """Raise InputError for what DVC does not see, hangs at, or fails at without a word of advice."""
    walked = walk_root(root, where, "Set data.root to the folder that holds the images.")
    closed = [path for path in walked.files if not os.access(root / path, os.R_OK)]
    unread = [f"{each.path} ({each.reason})" for each in walked.bad]
    unread += [f"{path} ({os.strerror(errno.EACCES)})" for path in closed]
    if unread:
        raise InputError(
            f"{where}: DVC cannot read what is in it: {named(unread)}. Delete or repair them, or allow your "
            "user to read them."
        )


def walk(root: Path) -> Walked:
    """All that lies below `root`."""
    found = Walked()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            for path, entry in _visible(root, folder):
                if entry.is_dir(follow_symlinks=False):
                    found.folders.append(path)
                    waiting.append(path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    found.linked.append(path)
                elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                    found.files.append(path)
                else:
                    found.bad.append(_no_file(root, path))
        except OSError as error:
            found.bad.append(LeftOut(folder or ".", "unreadable folder", error.strerror or str(error)))
    return Walked(sorted(found.folders), sorted(found.files), sorted(found.linked), sorted(found.bad))


def _visible(root: Path, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield f"{folder}/{entry.name}" if folder else entry.name, entry


def _no_file(root: Path, path: str) -> LeftOut:
    try:
        _size(root / path)
    except Undecodable as error:
        return LeftOut(path, error.kind, str(error))
    return LeftOut(path, "unreadable", "it changed while the folder was read")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that holds a picture."""
    size = _size(path)
    if size > MAX_BYTES:
        raise Undecodable(f"{size:,} bytes are too many", "too large")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Undecodable(error.strerror or str(error), "unreadable") from error


def stamp(path: Path) -> str:
    """Changes when the file is written."""
    try:
        found = path.stat()
    except OSError as error:
        return str(error.errno)
    return f"{found.st_size} {found.st_mtime_ns}"


def _size(path: Path) -> int:
    """Of a regular file. To open anything else may take for ever."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise Undecodable("a link to nothing", "dangling link") from error
    except OSError as error:
        raise Undecodable(error.strerror or str(error), "unreadable") from error
    if not stat.S_ISREG(found.st_mode):
        raise Undecodable("a pipe, a socket, a device or a folder", "not a file")
    return found.st_size


def is_picture(path: str) -> bool:
    """By its name."""
    return _suffix(path) in SUFFIXES


def no_picture(path: str) -> LeftOut:
    """What a file is that does not have the name of a picture."""
    suffix = _suffix(path)
    if suffix in PARTIAL:
        return LeftOut(path, "partial download", "it was not downloaded to its end")
    if suffix in UNREAD:
        return LeftOut(path, f"{suffix} picture", UNREAD[suffix])
    return LeftOut(path, "other file", "it does not have the name of a picture")


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _refuse_names(walked: Walked, where: str) -> None:
    """Neither DVC nor a table of files can write down a name that is not text."""
    paths = (*walked.folders, *walked.files, *walked.linked, *(each.path for each in walked.bad))
    if wrong := [ascii(path) for path in paths if not _is_text(path)]:
        raise InputError(f"{where}: names that are not valid UTF-8: {named(wrong)}. Rename them.")


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_links(root: Path, walked: Walked, where: str) -> None:
    """DVC hashes a linked folder as nothing, so it would not see that pictures behind the link change."""
    if walked.linked:
        links = named([f"{path!r} (to {os.path.realpath(root / path)!r})" for path in walked.linked])
        raise InputError(
            f"{where}: DVC does not watch folders behind links, but these are links to folders: {links}. "
            "Move or copy the real folders there, or set data.root to a folder that holds them (data.root "
            "itself may be a link)."
        )
