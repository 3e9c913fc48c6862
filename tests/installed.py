"""The tool as others install it: from a wheel, away from this repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from scratch_project import ROOT, do

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
SCRIPT = "#!{python}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"


def build_wheel(place: Path) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    source = place / "source"
    for name in ("pipeline", "stages", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-c", BUILD, str(place)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = place.glob("*.whl")
    return wheel


class Installed:
    """An environment with the wheel. What it depends on is borrowed from the environment of the tests."""

    def __init__(self, place: Path) -> None:
        self.wheel = build_wheel(place)
        environment = place / "tool"
        venv.create(environment, symlinks=True)
        self.packages = Path(
            sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)})
        )
        (self.packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(self.packages)
        self.bin = place / "bin"  # as `uv tool install` does: the commands alone, and another python before
        self.bin.mkdir()
        python = environment / "bin/python"
        for name, module in {
            "handdown": "pipeline.project.__main__",
            "dvc": "dvc.cli",
            "mlflow": "mlflow.cli",
        }.items():
            text = SCRIPT.format(python=python, module=module)
            if name == "mlflow":
                text = text.replace("import main", "import cli as main")
            (environment / "bin" / name).write_text(text)
            (environment / "bin" / name).chmod(0o755)
            (self.bin / name).symlink_to(environment / "bin" / name)
        (self.bin / "python").write_text("#!/bin/sh\necho this is another python >&2\nexit 1\n")
        (self.bin / "python").chmod(0o755)
        home = place / "home"
        home.mkdir()
        person = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        path = f"{self.bin}:/usr/bin:/bin"
        self.env = kept | person | {"PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def do(self, *command: str, cwd: Path, fails: bool = False) -> str:
        return do(command, cwd, self.env, fails=fails)
