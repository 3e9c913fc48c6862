"""What a person sees when a stage cannot go on: a paragraph, an exit code, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from scratch_project import ROOT, start

from pipeline.project import __main__ as main
from pipeline.project.command import command

OF_TEACHER = [
    "--name",
    "big",
    "--data",
    "d",
    "--code",
    "c",
    "--out",
    "o",
    "--work",
    "w",
    "--record",
    "t.json",
]
NOT_SAVING_BY_ITSELF = """
import runpy
from pipeline.training import loop, state

state.SAVE_EVERY = 1e9
keep = state.State.keep

def told(self, *args):
    if self.step == 1:
        print("training", flush=True)
    keep(self, *args)

state.State.keep = told
runpy.run_module("stages.teacher", run_name="__main__")
"""


def stage(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def with_params(tmp_path: Path, **data: object) -> Path:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= data
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


def test_words_before_a_slash_need_no_option_and_any_words_are_handed_on() -> None:
    got: list[object] = []

    def make(place: Path, /, size: int = 3) -> None:
        got.append((place, size))

    def pass_on(*words: str) -> None:
        got.append(words)

    command(make, arguments=["here", "--size", "4"])
    command(pass_on, arguments=["--csv", "picture.png"])
    assert got == [(Path("here"), 4), ("--csv", "picture.png")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "folder", "root": "nowhere"}, "nowhere"),
        ({"source": "foldr"}, "data.source"),
        ({"sizes": 3}, "Did you mean 'size'?"),
    ],
)
def test_bad_input_is_a_paragraph_and_an_exit_code(
    data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    cwd = with_params(tmp_path, **data)
    done = stage("prepare", "--data", "out", "--work", "w", "--record", "r.json", cwd=cwd)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in cwd.iterdir()] == ["params.yaml"]


def test_a_missing_input_says_which_command_makes_it(tmp_path: Path) -> None:
    cwd = with_params(tmp_path)
    (cwd / "c").touch()
    done = stage("teacher", *OF_TEACHER, cwd=cwd)
    assert done.returncode == 2
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
module = sys.argv.pop(2)
del sys.argv[1]
runpy.run_module(module, run_name="__main__")
"""


def test_a_disk_that_cannot_be_written_is_a_paragraph_and_leaves_nothing(tmp_path: Path) -> None:
    """No file may be larger than 20,000 bytes here; a full disk gives the same kind of error."""
    cwd = with_params(tmp_path, size=16)
    arguments = ["--data", "d", "--work", "w", "--record", "r.json"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "20000", "stages.prepare", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: The file would be larger than this user may make it: d.")
    assert "Traceback" not in done.stderr
    # what is decoded is kept for the next start; nothing else is there
    assert sorted(path.name for path in cwd.iterdir()) == ["params.yaml", "w"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder where nobody may write")
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    cwd = with_params(tmp_path, size=16)
    done = stage("prepare", "--data", "/sys/prepared", "--work", "w", "--record", "r.json", cwd=cwd)
    assert done.returncode == 2
    assert "Error: This user has no right to do that: /sys/prepared" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def started(command: list[str], cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A command that does not outlive the block."""
    running = start(command, cwd, os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_trained(number: signal.Signals, tmp_path: Path) -> None:
    """Even in the first epoch, and if the state was never saved before."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"size": 8}
    params["teachers"]["big"] = {"net": "resnet8", "train": {"epochs": 500, "batch_size": 256}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert stage("prepare", "--data", "d", "--work", "w", "--record", "r.json", cwd=tmp_path).returncode == 0
    (tmp_path / "c").touch()
    command = [sys.executable, "-c", NOT_SAVING_BY_ITSELF, *OF_TEACHER]
    with started(command, tmp_path) as running:
        assert running.stdout is not None
        while "training" not in running.stdout.readline():
            assert running.poll() is None
        running.send_signal(number)
        _, printed = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert printed.startswith("\nStopping as soon as the state is saved ...\n")
    assert "`dvc repro` goes on from there" in printed
    assert list(tmp_path.glob("w/teacher-big-*/distill.state"))
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "t.json").exists()


def test_ctrl_c_while_a_stage_imports_is_one_line(tmp_path: Path) -> None:
    """Torch takes seconds to import. `-X importtime` says when it has begun."""
    with_params(tmp_path)
    command = [sys.executable, "-X", "importtime", "-m", "stages.teacher", *OF_TEACHER]
    with started(command, tmp_path) as running:
        assert running.stderr is not None
        while "torch." not in running.stderr.readline():
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        _, printed = running.communicate(timeout=60)
    said = [line for line in printed.splitlines() if not line.startswith("import time:")]
    assert said == ["", "Stopped before it began: `dvc repro` goes on from there."]
    assert running.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_turns_into_an_error_is_one_line(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """As safetensors does, written in Rust: ValueError, `could not determine the shape of ...`."""
    usual = signal.getsignal(signal.SIGINT)

    def load() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type") from None

    try:
        with pytest.raises(SystemExit) as ended:
            command(load, arguments=[])
    finally:
        signal.signal(signal.SIGINT, usual)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err.startswith("\nStopped. What was trained")


class Closing:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_comes_in_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """Python drops the error there, and says `Exception ignored`."""
    usual, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def work() -> None:
        Closing()
        time.sleep(20)

    begun = time.monotonic()
    try:
        with pytest.raises(SystemExit) as ended:
            command(work, arguments=[])
    finally:
        signal.signal(signal.SIGINT, usual)
    assert (ended.value.code, time.monotonic() - begun < 15) == (128 + signal.SIGTERM, True)
    assert capsys.readouterr().err.startswith("\nStopped. What was trained")
    assert sys.unraisablehook is hook


TWICE = """
import signal, sys
from pipeline.project.command import command

class Again:
    def write(self, text):
        signal.raise_signal(signal.SIGINT)

    def flush(self):
        pass

def work():
    signal.raise_signal(signal.SIGINT)

real, sys.stderr = sys.stderr, Again()
command(work, arguments=[])
"""


def test_a_second_signal_ends_a_stop_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_before_a_command_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "import_module", stop)
    with pytest.raises(SystemExit, match="130"):
        main.main(["new", "here"])
    assert capsys.readouterr().err == "\nStopped.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "python",
        "torchrun --nproc-per-node 2",
        "accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no",
    ],
)
def test_stages_run_under_every_launcher(launcher: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"epochs": 2, "steps": 0}
    params["teachers"]["big"] = {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 2}}
    params["runs"] = {"fitnet": params["runs"]["fitnet"] | {"seeds": [0], "phases": {"hint": {"epochs": 2}}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert stage("prepare", "--data", "d", "--work", "w", "--record", "r.json", cwd=tmp_path).returncode == 0
    (tmp_path / "c").touch()
    common = ["--data", "d", "--code", "c", "--work", "w"]
    of_run = [*common, "--name", "fitnet", "--teacher", "t"]
    for arguments in (
        ["stages.teacher", *common, "--name", "big", "--out", "t", "--record", "t.json"],
        ["stages.pretrain", *of_run, "--out", "i", "--record", "p.json"],
        ["stages.distill", *of_run, "--initial", "i", "--out", "s", "--record", "s.json"],
    ):
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [*launcher.split(), "-m", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("epochs on") == 1  # one of the processes prints
    assert (tmp_path / "s/seed-0/weights.safetensors").is_file()
    assert not list(tmp_path.glob("w/*/*"))
