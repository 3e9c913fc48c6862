"""DVC, called as a program."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.settings import PARAMS, InputError, read_params

BIN = Path(sys.executable).parent


def programs() -> Path:
    """The folder of dvc and of this program."""
    return BIN


def dvc(*arguments: str) -> int:
    """Run dvc with this Python first on the PATH, since stages are run as `python -m ...`; its exit code."""
    read_params(PARAMS)  # DVC says little or nothing about one that it cannot read
    stopped: KeyboardInterrupt | None = None
    command = [str(BIN / "dvc"), *arguments]
    with _holding_signals() as let_go, subprocess.Popen(command, env=_environment()) as process:  # noqa: S603
        while process.returncode is None:
            try:
                let_go()
                process.wait()
            except KeyboardInterrupt as error:  # the terminal sent it to dvc too, which stops in its own way
                stopped = error
                if error.args:  # SIGTERM came to this process alone
                    _send_ctrl_c(process.pid)
    if stopped and process.returncode:  # dvc's last word is that a stage failed
        raise stopped
    return process.returncode


@contextmanager
def _holding_signals() -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back until they are let go. One that came while a process starts would leave it
    running, with nobody to wait for it."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}

    def let_go() -> None:
        while usual:
            signal.signal(*usual.popitem())
        while came:
            signal.raise_signal(came.pop())

    try:
        yield let_go
    finally:
        let_go()


def quiet_dvc(command: str, *arguments: str) -> int:
    """As `dvc`, but only stages speak. If DVC cannot read the project, the error says what it says."""
    code = dvc(command, "-q", *arguments)
    if code:
        printed_by_dvc("status", "--json")
    return code


def start_dvc(*arguments: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start dvc in a process group of its own, with a pipe for all that it and its stages print."""
    return subprocess.Popen(  # noqa: S603
        [BIN / "dvc", *arguments],
        env=_environment() | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )


def _send_ctrl_c(process: int) -> None:
    """To a process and all that it has started, as a terminal does."""
    for each in (process, *_started_by(process)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGINT)


def _started_by(process: int) -> Iterator[int]:
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            yield child
            yield from _started_by(child)


def printed_by_dvc(*arguments: str) -> str:
    """What a dvc command that changes nothing prints."""
    done = subprocess.run(  # noqa: S603
        [BIN / "dvc", *arguments], env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"`dvc {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
