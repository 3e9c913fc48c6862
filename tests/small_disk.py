"""A real disk with little room, for one process and its children: a tmpfs that nobody else sees.

It needs no rights where the system lets a user have a namespace of its own.
"""

import ctypes
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

NEW_USERS, NEW_MOUNTS = 0x10000000, 0x00020000  # of unshare(2)
REMOUNT = 32  # of mount(2)
LARGE = 4 << 30  # bytes; a tmpfs takes what is written alone


@cache
def possible() -> bool:
    """Whether this machine lets its users have such disks."""
    child = os.fork()
    if not child:
        try:
            _own_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def on_small_disk(folder: Path, room: int, work: Callable[[Path], int]) -> int:
    """What `work` returns in a copy of `folder` on a disk with so many bytes of room. Then the copy replaces
    the folder.

    Only for a process with one thread, which ends soon.
    """
    disk = folder.with_name(f"{folder.name}-disk")
    disk.mkdir(exist_ok=True)
    _own_namespace()
    _mount(disk, f"size={LARGE}")
    shutil.copytree(folder, disk, symlinks=True, dirs_exist_ok=True)
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    _mount(disk, f"size={used + room}", REMOUNT)
    child = os.fork()
    if not child:
        os._exit(work(disk))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _mount(disk, f"size={LARGE}", REMOUNT)
    shutil.rmtree(folder)
    shutil.copytree(disk, folder, symlinks=True)
    return code


def _own_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", NEW_USERS | NEW_MOUNTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(place: Path, options: str, flags: int = 0) -> None:
    _call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", flags, options.encode())


def _call(name: str, *arguments: int | bytes) -> None:
    of_system = ctypes.CDLL(None, use_errno=True)
    if getattr(of_system, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
