"""A project that a test works in as a person would: through `dvc` and `make`."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.project.ahead import ALWAYS

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CODE = (
    "pipeline",
    "stages",
    "my_nets",
    "dvc.yaml",
    "tool/dvc.yaml",
    "Makefile",
    "bootstrap.lock",
    "requirements.lock",
    "pyproject.toml",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvc/plots",
    "data/raw",
)


def heeding_ctrl_c() -> None:
    """For a process that a test interrupts. Tests that run in the background may ignore Ctrl-C, and so would
    their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], *, stderr: int | None = None
) -> subprocess.Popen[str]:
    """A command in a process group of its own, to be interrupted later."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        process_group=0,
        preexec_fn=heeding_ctrl_c,
    )


def do(command: Sequence[str], cwd: Path, env: Mapping[str, str], *, fails: bool = False) -> str:
    """What a command prints, which ends well or `fails`."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout[-4000:]
    return done.stdout


def copy_of_the_project(place: Path) -> Path:
    for name in CODE:
        source, target = ROOT / name, place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return place


class Project:
    """A copy of this project with params of its own, and the commands that a person gives in it."""

    def __init__(self, place: Path, settings: dict[str, Any]) -> None:
        self.place, self.settings = copy_of_the_project(place), settings
        (place / ".venv").symlink_to(BIN.parent)
        home = place.parent / "home"
        home.mkdir()
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        person = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.env = kept | person | {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def do(self, *command: str, fails: bool = False) -> str:
        return do(command, self.place, self.env, fails=fails)

    def start(self, *command: str) -> subprocess.Popen[str]:
        return start(command, self.place, self.env)

    def repro(self, *arguments: str, fails: bool = False) -> list[str]:
        """The stages that ran, but for the one that always runs."""
        self.printed = self.do("dvc", "repro", *arguments, fails=fails)
        ran = re.findall(r"Running stage '([^']+)'", self.printed)
        return [stage for stage in ran if stage != ALWAYS[0]]

    def params(self, change: Callable[[Any], Any] = lambda settings: None) -> None:
        """Write params.yaml: the settings of the first run, changed."""
        settings = json.loads(json.dumps(self.settings))
        change(settings)
        (self.place / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def rows(self) -> list[str]:
        """Of the runs and the teachers, without the trainings below them."""
        with sqlite3.connect(self.place / "mlflow.db") as database:
            found = database.execute(
                "select name from runs where status = 'FINISHED' and lifecycle_stage = 'active' and run_uuid "
                "not in (select run_uuid from tags where key = 'mlflow.parentRunId')"
            )
            return [name for (name,) in found]
