"""How a function becomes a command: each parameter is an option, and a user's mistake is one paragraph.

Which commands there are, and where: `__main__.py`.
"""

import argparse
import inspect
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from pipeline.deploy import trouble
from pipeline.records.place import here
from pipeline.settings import InputError

FIRST = (
    os.environ.get("RANK", "0") == "0"
)  # of several processes under a launcher, the one that writes and prints
WIDTH = 110
AGAIN = 0.05  # seconds


def command(
    function: Callable[..., None], *, prog: str | None = None, arguments: Sequence[str] | None = None
) -> None:
    """Call `function` with its options from the command line."""
    words, options = _parsed(function, prog, sys.argv[1:] if arguments is None else arguments)
    if FIRST and (place := here()):
        print(f"[{place.at(0.0)}]", flush=True)
    came: list[int] = []  # signals

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt(*([] if number == signal.SIGINT else [number]))

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        """Python drops an error that comes where no code can catch it, such as in a finalizer."""
        if came and isinstance(lost.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), came[-1]))
            again.daemon = True
            again.start()
        else:
            sys.__unraisablehook__(lost)

    usual, usual_hook = signal.signal(signal.SIGTERM, end), sys.unraisablehook
    sys.unraisablehook = send_again
    signal.signal(signal.SIGINT, end)  # stages/__init__.py has another one
    try:
        function(*words, **options)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _stopped(error.args[0] if error.args else signal.SIGINT)
    except Exception as error:  # printed by every process, since it may concern one alone
        if came:  # libraries in C make another error of a KeyboardInterrupt that comes while they work
            _stopped(came[0])
        said = str(error) if isinstance(error, InputError) else trouble.in_words(error)
        if said is None:
            raise
        text = textwrap.fill(f"Error: {said}", WIDTH, break_long_words=False, break_on_hyphens=False)
        print(f"\n{text}\n", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, usual)
        sys.unraisablehook = usual_hook


def _stopped(number: int) -> NoReturn:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)  # the next one ends it at once
    if FIRST:
        print("\nStopped. What was trained so far is kept: `dvc repro` goes on from there.", file=sys.stderr)
    sys.exit(128 + number)


def _parsed(
    function: Callable[..., None], prog: str | None, arguments: Sequence[str]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Words and options. A function of any words (`*words`) gets all of them as they are."""
    parser = argparse.ArgumentParser(
        prog=prog or f"python -m {function.__module__}", description=inspect.getdoc(function)
    )
    words = []
    for name, parameter in inspect.signature(function).parameters.items():
        has_default = parameter.default is not parameter.empty
        default = parameter.default if has_default else None
        if parameter.kind is parameter.VAR_POSITIONAL:
            return arguments, {}
        if parameter.kind is parameter.POSITIONAL_ONLY:
            words.append(name)
            parser.add_argument(name, type=parameter.annotation)
        else:
            how = {"action": "store_true"} if parameter.annotation is bool else {"type": parameter.annotation}
            parser.add_argument(f"--{name}", required=not has_default, default=default, **how)
    options = vars(parser.parse_args(arguments))
    return [options.pop(name) for name in words], options
