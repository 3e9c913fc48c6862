"""`handdown COMMAND`: everything that a person does with a project, from its folder."""

import os
import runpy
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

# command -> the module of this room with a function of that name. It is imported when it is needed, because
# each stage begins here.
COMMANDS = {
    "new": "new",
    "check": "run",
    "plan": "plan",
    "dag": "dag",
    "run": "run",
    "slurm": "slurm",
    "report": "results",
    "predict": "results",
    "ui": "ui",
    "live": "live",
    "promote": "promote",
    "tries": "run",
    "balance": "balance",
    "track": "run",
    "deploy": "results",
}
TRAINING = ("teacher", "knowledge", "pretrain", "distill")  # stages that may have several processes
AT_EVERY_START = "installed"  # a stage that a second Python would make twice as slow
ANYWHERE = ("new", "deploy")  # the others need a project
USAGE = "handdown COMMAND, where COMMAND is one of:"
NO_PROJECT = (
    "Error: there is no project in this folder (no dvc.yaml and params.yaml). Go to the folder of one, or "
    "make one: handdown new NAME --images FOLDER"
)


def main(arguments: list[str] | None = None) -> None:
    try:
        _do(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before the command began, which catches its own
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)


def _do(arguments: list[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name == "stage":
        _do_stage(*rest)
    elif name == "--version":
        print(f"{version()} in {sys.prefix}")
    elif name in COMMANDS:
        _do_command(name, rest)
    else:
        _say_usage()
        sys.exit(0 if name in ("-h", "--help") else 2)


def _do_command(name: str, options: list[str]) -> None:
    if name not in ANYWHERE and not (Path("dvc.yaml").is_file() and Path("params.yaml").is_file()):
        print(NO_PROJECT, file=sys.stderr)
        sys.exit(2)
    from pipeline.project.command import command

    command(_function(name), prog=f"handdown {name}", arguments=options)


def _say_usage() -> None:
    lines = [f"  {each:<9}{(_function(each).__doc__ or '').splitlines()[0]}" for each in COMMANDS]
    print(USAGE, *lines, "", "handdown COMMAND --help lists its options.", sep="\n")


def version() -> str:
    from importlib.metadata import version

    return f"handdown {version('folder-to-student')}"


def _function(name: str) -> Callable[..., None]:
    found: Callable[..., None] = getattr(import_module(f"pipeline.project.{COMMANDS[name]}"), name)
    return found


def _do_stage(name: str, *options: str) -> None:
    if name == AT_EVERY_START and not _has_code_of_its_own():
        sys.argv = [name, *options]
        runpy.run_module(f"stages.{name}", run_name="__main__")
    else:
        _become_stage(name, *options)


def _has_code_of_its_own() -> bool:
    """Whether this folder has other stages than those of this process."""
    return Path("stages").is_dir() and Path.cwd() != Path(__file__).parents[2]


def _become_stage(name: str, *options: str) -> None:
    """Run stages/NAME.py by this Python, whatever is on the PATH; of a clone, the code that lies there.

    A stage that trains is started by the launcher of params.yaml, a program of this environment if it has
    one. DVC does not know the launcher, so another one makes no stage run again.
    """
    launcher = _launcher() if name in TRAINING else ["python"]
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
    program = sys.executable if launcher[0] == "python" else launcher[0]
    command = [program, *launcher[1:], "-m", f"stages.{name}", *options]
    if launcher != ["python"]:  # a params.yaml of somebody else may start anything
        print(f"launcher: {shlex.join(command)}", flush=True)
    os.execvpe(program, command, os.environ | {"PATH": path})  # noqa: S606


def _launcher() -> list[str]:
    import yaml

    return shlex.split(yaml.safe_load(Path("params.yaml").read_text())["launcher"])


if __name__ == "__main__":
    main()
