"""This project's real graph with stages that only write down that they ran: DVC at work, without training."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratch_project import BIN, ROOT, heeding_ctrl_c, start

from pipeline.project.ahead import ALWAYS

STUB = """#!{python} -IS
import hashlib, json, os, sys, time
from pathlib import Path

kind, stage = sys.argv[2], os.environ["DVC_STAGE"]
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
told = json.loads(Path(os.environ["STUB_TOLD"]).read_text())
entry = {{"stage": stage, "begun": time.monotonic(), "pid": os.getpid(), "cwd": os.getcwd()}}
entry |= {{key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}}


def log(**more):
    with open(os.environ["STUB_LOG"], "a") as file:
        file.write(json.dumps(entry | more) + "\\n")


print(stage, "is at work", flush=True)
if stage in told["fails"]:
    print("Error: there is no such thing. Go elsewhere.", file=sys.stderr, flush=True)
    log(ended=time.monotonic(), how="failed")
    sys.exit(2)
try:
    time.sleep(told["seconds"].get(stage, 0.0))
except KeyboardInterrupt:
    log(ended=time.monotonic(), how="stopped")
    sys.exit(130)
settings = json.loads(Path("params.yaml").read_text())
name = options.pop("--name", "")
options.pop("--work", None)
of_run = settings["runs"].get(name) if kind in ("pretrain", "distill") else None
text = stage + json.dumps(of_run)
paths = [Path(path) for path in options.values()]
inputs = [Path(options[key]) for key in ("--records", "--bundles", "--data")] if kind == "report" else paths
for path in inputs:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    text += "".join(file.read_text() for file in files if file.exists())
content = stage + " " + hashlib.sha256(text.encode()).hexdigest() + "\\n"
outs = [path for path in paths if not path.exists()]
if kind == "check":
    outs.remove(Path("records/code"))
    of_run = ("pretrain", "distill", "analyse", "evaluate", "export", "benchmark")
    named = [f"teacher/{{key}}" for key in settings["teachers"]]
    named += [f"knowledge/{{key}}" for key in settings["knowledge"]]
    named += [f"{{each}}/{{key}}" for key in settings["runs"] for each in of_run]
    listed = ("prepare", "trial", "views", "report", "track", *named)
    outs += [Path("records/code", each) for each in listed]
    content = "code\\n"
if kind == "report":
    outs = [Path("plots"), *(Path("reports", each) for each in ("report.html", "report.md", "table.txt"))]
    outs.append(Path("metrics/gain.json"))
if kind == "installed":
    outs = [Path("records/installed.txt")]
for out in outs:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("{{}}\\n" if out.suffix == ".json" else content)
log(ended=time.monotonic(), how="done")
"""
DRIVER = """
import sys
from pathlib import Path
try:
    from pipeline.project import dvc, __main__
    dvc.BIN = Path(sys.argv.pop(1))
except KeyboardInterrupt:
    sys.exit(130)
__main__.main()
"""
RUN = {"teacher": "big", "student": "small", "method": {"name": "kd"}, "seeds": [0]}


@dataclass(frozen=True)
class Ran:
    """One call of a stage."""

    stage: str
    begun: float
    ended: float
    how: str
    environment: dict[str, str | None]
    cwd: str


class StubProject:
    """A folder with dvc.yaml, params.yaml (as JSON, which is YAML too) and git."""

    def __init__(self, place: Path, *runs: str, teachers: tuple[str, ...] = ("big",)) -> None:
        self.place, self.bin = place, place.parent / "bin"
        self.log, self.told = place.parent / "log", place.parent / "told"
        for name in (
            "dvc.yaml",
            "tool/dvc.yaml",
            ".gitignore",
            ".dvcignore",
            ".dvc/config",
            ".dvc/.gitignore",
            "data/raw",
        ):
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = ROOT / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (place / "my_nets").mkdir()
        (place / "my_nets/__init__.py").write_text('"""Nets."""\n')
        self.settings: dict[str, Any] = {
            "launcher": "python",
            "data": {"root": "data/raw"},
            "augment": {},
            "protocol": {},
            "train": {},
            "teachers": {name: {} for name in teachers},
            "knowledge": {},
            "students": {"small": {}},
            "runs": {run: RUN for run in runs},
            "analysis": {},
            "export": {},
            "benchmark": {},
        }
        self.write_params()
        self._make_programs()
        self.env = self._environment()
        self.tell()
        for command in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "start")):
            subprocess.run(["git", *command], cwd=place, env=self.env, check=True)

    def write_params(self) -> None:
        (self.place / "params.yaml").write_text(json.dumps(self.settings, indent=1))

    def tell(self, *, fails: tuple[str, ...] = (), seconds: dict[str, float] | None = None) -> None:
        """What the stages do next."""
        self.told.write_text(json.dumps({"fails": fails, "seconds": seconds or {}}))

    def command(self, *words: str) -> list[str]:
        """`handdown WORDS`, with the stages of this file."""
        return [sys.executable, "-c", DRIVER, str(self.bin), *words]

    def do(self, *command: str, fails: bool = False, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=cwd or self.place,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            preexec_fn=heeding_ctrl_c,
        )
        assert (done.returncode != 0) == fails, done.stdout[-4000:]
        return done.stdout

    def handdown(self, *words: str, fails: bool = False) -> str:
        return self.do(*self.command(*words), fails=fails)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return start(self.command(*words), self.place, self.env, stderr=subprocess.STDOUT)

    def ran(self) -> list[Ran]:
        """The stages that ran since the last call, in the order in which they ended; not `installed`."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [ran for ran in map(_ran, lines) if ran.stage != ALWAYS[0]]

    def is_up_to_date(self) -> bool:
        status = json.loads(self.do("dvc", "status", "--json"))
        return bool(status == {ALWAYS[0]: ["always changed"]})

    def outputs(self) -> dict[str, str]:
        """What all stages but those that measure wrote."""
        folders = [self.place / name for name in ("models", "records", "metrics", "reports")]
        files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
        return {str(file.relative_to(self.place)): file.read_text() for file in sorted(files)}

    def _make_programs(self) -> None:
        self.bin.mkdir()
        (self.bin / "dvc").symlink_to(BIN / "dvc")
        (self.bin / "handdown").write_text(STUB.format(python=sys.executable))
        (self.bin / "handdown").chmod(0o755)

    def _environment(self) -> dict[str, str]:
        person = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        own = {"STUB_LOG": str(self.log), "STUB_TOLD": str(self.told), "PYTHONPATH": str(ROOT)}
        home = {"HOME": str(self.place.parent), "PATH": f"{self.bin}:/usr/bin:/bin"}
        return person | own | home | ({"TMPDIR": os.environ["TMPDIR"]} if "TMPDIR" in os.environ else {})


def _ran(line: str) -> Ran:
    entry = json.loads(line)
    keys = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    environment = {key: entry[key] for key in keys}
    return Ran(entry["stage"], entry["begun"], entry["ended"], entry["how"], environment, entry["cwd"])
