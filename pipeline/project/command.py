"""How a function becomes a command: each parameter is an option, and a user's mistake is one paragraph."""

import argparse
import inspect
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import FrameType

from pipeline.deploy import trouble
from pipeline.records.place import here
from pipeline.settings import InputError

FIRST = (
    os.environ.get("RANK", "0") == "0"
)  # of several processes under a launcher, the one that writes and prints
WIDTH = 110


def command(
    function: Callable[..., None], *, prog: str | None = None, arguments: Sequence[str] | None = None
) -> None:
    """Call `function` with its options from the command line."""
    parser = argparse.ArgumentParser(
        prog=prog or f"python -m {function.__module__}", description=inspect.getdoc(function)
    )
    for name, parameter in inspect.signature(function).parameters.items():
        has_default = parameter.default is not parameter.empty
        default = parameter.default if has_default else None
        parser.add_argument(f"--{name}", type=parameter.annotation, required=not has_default, default=default)
    if FIRST and (place := here()):
        print(f"[{place.at(0.0)}]", flush=True)
    usual = signal.signal(signal.SIGTERM, _end)
    try:
        function(**vars(parser.parse_args(arguments)))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if FIRST:
            print(
                "\nStopped. What was trained so far is kept: `dvc repro` goes on from there.", file=sys.stderr
            )
        sys.exit(128 + (error.args[0] if error.args else signal.SIGINT))
    except Exception as error:  # printed by every process, since it may concern one alone
        said = str(error) if isinstance(error, InputError) else trouble.in_words(error)
        if said is None:
            raise
        text = textwrap.fill(f"Error: {said}", WIDTH, break_long_words=False, break_on_hyphens=False)
        print(f"\n{text}\n", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, usual)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
