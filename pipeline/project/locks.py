"""What DVC writes in place, after a process that was killed at that moment.

This is the list of who reads and writes which files, `.dvc/tmp/rwlock`, and what each stage last read and
wrote, `dvc.lock`. A kill leaves them empty or cut short, and every later `dvc repro` fails. Both can go:
DVC's cache knows what each stage made of what. Its other lock files hold nothing: the system frees their
locks when a process ends, in any way.
"""

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.files import atomic_file
from pipeline.settings import InputError

LIST = Path(".dvc/tmp/rwlock")
GUARD = Path(".dvc/tmp/rwlock.lock")  # held by whoever reads or writes the list
LOCKFILES = (Path("dvc.lock"), Path("tool/dvc.lock"))
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, if it is there
CONFLICT = "<<<<<<<"  # git's mark of two versions, between which a person decides
SLACK = 2.0  # seconds by which the clocks of files and processes may differ
MOMENT = 0.5  # seconds; what waits for DVC's daemon ends at the latest so long after it


def mend_locks() -> None:
    """Mend the list and the lock files if nobody uses them, and say so. What a living process holds stays."""
    for file in LOCKFILES:
        if file.exists() and _is_cut(file.read_bytes()):
            _refuse_if_dvc_runs(file)
            file.unlink()
            _say(
                f"{file} was cut short by a process that was killed, so it was removed. What stages made is "
                "taken from DVC's cache"
            )
    _mend_list()


def _is_cut(content: bytes) -> bool:
    """Whether this is no lock file that DVC would read, and no person has to decide about it."""
    text = content.decode(errors="replace")
    try:
        lock = yaml.load(text, LOADER)  # noqa: S506 - it is a SafeLoader
        whole = text.endswith("\n") and not any(map(_has_gap, lock["stages"].values()))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        whole = False
    return not whole and CONFLICT not in text


def _has_gap(stage: dict[str, Any]) -> bool:
    """Whether something is missing in what is said of a stage. A parameter may be nothing."""
    files = [*stage.get("deps", []), *stage.get("outs", [])]
    params = stage.get("params", {}).values()
    return not (_is_said(stage["cmd"]) and _is_said(files) and all(isinstance(each, dict) for each in params))


def _is_said(value: object) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is not None and all(map(_is_said, parts))


def _mend_list() -> None:
    with suppress(FileNotFoundError), _guarded() as is_ours:
        if not is_ours:
            return
        held = _read()
        if held is None:
            _refuse_if_dvc_runs(LIST)
            LIST.unlink()
            _say(f"DVC's list of locks, {LIST}, was damaged by a process that was killed, so it was removed")
        elif ended := _ended(held, LIST.stat().st_mtime):
            with atomic_file(LIST) as file:
                file.write_text(json.dumps(_without(held, ended)))
            _say(
                f"DVC's list of locks, {LIST}, still named processes that have ended "
                f"({', '.join(map(str, ended))}); they were removed"
            )


@contextmanager
def _guarded() -> Iterator[bool]:
    """Whether nobody else uses the list meanwhile. With DVC's `core.hardlink_lock` this cannot be known."""
    with GUARD.open("r+") as file:
        text = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield not text or text.isdigit()


def _read() -> dict[str, dict[str, Any]] | None:
    """What reads and writes each path. None if the list is damaged."""
    try:
        held = json.loads(LIST.read_bytes())
        if not all(isinstance(each["pid"], int) for each in _holders(held)):
            return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(held)


def _ended(held: dict[str, dict[str, Any]], written: float) -> list[int]:
    return sorted(pid for pid in {each["pid"] for each in _holders(held)} if not _holds(pid, written))


def _holders(held: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [*held.get("write", {}).values(), *chain.from_iterable(held.get("read", {}).values())]


def _holds(pid: int, written: float) -> bool:
    """Whether this process lives and is the one that was meant: its number may have gone to a younger one."""
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + SLACK)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _without(held: dict[str, dict[str, Any]], ended: list[int]) -> dict[str, dict[str, Any]]:
    write = {path: by for path, by in held.get("write", {}).items() if by["pid"] not in ended}
    read = {
        path: [by for by in all_ if by["pid"] not in ended] for path, all_ in held.get("read", {}).items()
    }
    return {"write": write, "read": {path: by for path, by in read.items() if by}}


def _refuse_if_dvc_runs(file: Path) -> None:
    if _dvc_here():
        time.sleep(MOMENT)
    if running := _dvc_here():
        raise InputError(
            f"{file} is damaged, and DVC runs in this project (process {running[0]}), which may use files of "
            "the graph. Wait until it has ended, then run this again."
        )


def _dvc_here() -> list[int]:
    """The processes of DVC in this project that may use files of the graph.

    DVC's daemon uses none: it looks for a newer version, or sends statistics. A copy of the `dvc` that
    started it, with the same command line, waits for it in the background.
    """
    every = [process.info for process in psutil.process_iter(["pid", "ppid", "cmdline", "cwd"])]
    waiting = {info["ppid"] for info in every if _is_daemon(info["cmdline"] or [])}
    return [info["pid"] for info in every if _is_dvc_here(info) and info["pid"] not in waiting]


def _is_dvc_here(info: dict[str, Any]) -> bool:
    command, folder = info["cmdline"] or [], info["cwd"]
    is_dvc = any(Path(word).name == "dvc" for word in command[:3]) and not _is_daemon(command)
    return is_dvc and bool(folder) and Path(folder).is_relative_to(Path.cwd())


def _is_daemon(command: list[str]) -> bool:
    """Whether it is `dvc daemon`, or `python .../dvc/__main__.py daemon`."""
    return any(
        word == "daemon" and (Path(before).name == "dvc" or Path(before).parts[-2:] == ("dvc", "__main__.py"))
        for before, word in pairwise(command[:3])
    )


def _say(what: str) -> None:
    print(f"{what}.", file=sys.stderr, flush=True)
