"""DVC, called as a program."""

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def dvc(*arguments: str) -> int:
    """Run dvc with this Python first on the PATH, since stages are run as `python -m ...`; its exit code."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    with subprocess.Popen([BIN / "dvc", *arguments], env=environment) as process:  # noqa: S603
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal sent it to dvc too, which stops in its own way
                continue
