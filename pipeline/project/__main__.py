"""`python -m pipeline.project COMMAND`: what the Makefile calls, to be used from the folder of a project."""

import sys

from pipeline.project.balance import balance
from pipeline.project.command import command
from pipeline.project.graph import run, track, tries
from pipeline.project.live import live
from pipeline.project.plan import plan
from pipeline.project.promote import promote
from pipeline.project.ui import ui

COMMANDS = {each.__name__: each for each in (plan, run, tries, track, ui, live, promote, balance)}


def main(arguments: list[str]) -> None:
    chosen = COMMANDS.get(arguments[0]) if arguments else None
    if chosen is None:
        lines = [f"  {name:<10}{(each.__doc__ or '').splitlines()[0]}" for name, each in COMMANDS.items()]
        print("python -m pipeline.project COMMAND, where COMMAND is one of:", *lines, sep="\n")
        sys.exit(0 if arguments in ([], ["-h"], ["--help"]) else 2)
    command(chosen, prog=f"python -m pipeline.project {arguments[0]}", arguments=arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
