"""How a stage's function becomes a command: each of its parameters is an option, and what a person got wrong is said in a paragraph."""

import argparse
import inspect
import os
import sys
import textwrap
from collections.abc import Callable

from pipeline.inputs import InputError

FIRST = os.environ.get("RANK", "0") == "0"  # of several processes under a launcher, the one that writes and speaks


def command(stage: Callable[..., None]) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {stage.__module__}", description=stage.__doc__)
    for name, parameter in inspect.signature(stage).parameters.items():
        parser.add_argument(f"--{name}", type=parameter.annotation, required=True)
    try:
        stage(**vars(parser.parse_args()))
    except InputError as error:  # said by every process: it may concern one alone
        print("\n" + textwrap.fill(f"Error: {error}", 110, break_long_words=False, break_on_hyphens=False) + "\n", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if FIRST:
            print("\nStopped. What was trained so far is kept: `dvc repro` goes on from there.", file=sys.stderr)
        sys.exit(130)
