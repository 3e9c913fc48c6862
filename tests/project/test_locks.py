"""DVC's list of locks after a kill."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.dvcfile import Lockfile
from dvc.utils.serialize import YAMLFileCorruptedError
from dvc.utils.strictyaml import YAMLValidationError

from pipeline.project import locks, plan, run
from pipeline.project.dvc import BIN, quiet_dvc
from pipeline.project.locks import GUARD, LIST, mend_locks
from pipeline.settings import InputError

LOCKFILE = Path("dvc.lock")
WHOLE = """\
schema: '2.0'
stages:
  prepare:
    cmd: prepare it
    deps:
    - path: data/raw
      hash: md5
      md5: 12ab.dir
      size: 12
      nfiles: 3
    params:
      params.yaml:
        data.size: 8
        data.classes:
        data.names:
        - a
        - b
    outs:
    - path: data/prepared
      hash: md5
      md5: 34cd
      size: 99
      cloud:
        far:
          version_id: 7a
  track:
    cmd: track it
    deps:
    - path: data/prepared
      hash: md5
      md5: 34cd
      size: 99
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    GUARD.parent.mkdir(parents=True)
    GUARD.write_text(" 4711\n")
    return tmp_path


def ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def living() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(0.1)
    yield process.pid
    process.kill()
    process.wait()


def holder(pid: int) -> dict[str, object]:
    return {"pid": pid, "cmd": "dvc repro"}


@pytest.mark.parametrize(
    "content", [b"", b'{"read": {"a', b"\xff\xfe", b"[]", b"null", b'{"read": {"a": [1]}}', b"[" * 100_000]
)
def test_a_damaged_list_is_removed(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    LIST.write_bytes(content)
    mend_locks()
    assert not LIST.exists()
    assert ".dvc/tmp/rwlock, was damaged" in capsys.readouterr().err


def test_what_ended_processes_held_is_free_and_what_living_ones_hold_is_not(
    living: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = ended()
    held = {
        "write": {"a": holder(dead), "b": holder(living)},
        "read": {"c": [holder(dead), holder(living)], "d": [holder(dead)]},
    }
    LIST.write_text(json.dumps(held))
    mend_locks()
    assert json.loads(LIST.read_text()) == {"write": {"b": holder(living)}, "read": {"c": [holder(living)]}}
    assert f"({dead})" in capsys.readouterr().err
    before = LIST.stat()
    mend_locks()
    assert LIST.stat() == before
    assert capsys.readouterr().err == ""


def test_a_younger_process_with_the_same_number_holds_nothing(living: int) -> None:
    LIST.write_text(json.dumps({"write": {"a": holder(living)}}))
    os.utime(LIST, (time.time() - 100,) * 2)
    mend_locks()
    assert json.loads(LIST.read_text()) == {"write": {}, "read": {}}


def test_a_zombie_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(1)
    LIST.write_text(json.dumps({"write": {"a": holder(process.pid)}}))
    mend_locks()
    process.wait()
    assert json.loads(LIST.read_text())["write"] == {}


def test_a_list_that_somebody_is_writing_stays() -> None:
    LIST.write_bytes(b"")
    with GUARD.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mend_locks()
    assert LIST.read_bytes() == b""
    GUARD.write_text("/a/project/.dvc/tmp/0123abcd.lock")  # with core.hardlink_lock
    mend_locks()
    assert LIST.read_bytes() == b""


@pytest.mark.parametrize("file", [LIST, LOCKFILE])
def test_what_is_damaged_stays_while_dvc_runs_here(file: Path, folder: Path) -> None:
    file.write_bytes(b"")
    (folder / "dvc").write_text("import time; time.sleep(60)")
    other = subprocess.Popen([sys.executable, "dvc"])
    try:
        refused = rf"{file} is damaged.*process {other.pid}\).*Wait until it has ended"
        with pytest.raises(InputError, match=refused):
            mend_locks()
    finally:
        other.kill()
        other.wait()
    assert file.read_bytes() == b""
    mend_locks()
    assert not file.exists()


def test_the_daemon_that_dvc_leaves_behind_is_not_waited_for(folder: Path) -> None:
    """DVC forks, and the copy, which looks like `dvc repro`, waits for a daemon that may take long."""
    LIST.write_bytes(b"")
    daemon = folder / "site/dvc/__main__.py"
    daemon.parent.mkdir(parents=True)
    daemon.write_text("print('started', flush=True); import time; time.sleep(60)")
    start = [sys.executable, str(daemon), "daemon", "updater"]
    (folder / "dvc").write_text(f"import subprocess; subprocess.run({start})")
    command = [sys.executable, "dvc", "repro"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as copy:
        try:
            assert copy.stdout is not None
            assert copy.stdout.readline() == "started\n"
            mend_locks()
        finally:
            os.killpg(copy.pid, signal.SIGKILL)
    assert not LIST.exists()


def test_nothing_is_made_where_nothing_is() -> None:
    GUARD.unlink()
    mend_locks()
    assert not GUARD.exists()


def test_each_command_that_runs_the_graph_mends_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def see(*_: object) -> None:
        assert not LIST.exists()
        raise Enough

    for module in (run, plan):
        monkeypatch.setattr(module, "stages_ahead", see)
    monkeypatch.setattr(run, "dvc", see)
    for command in (run.run, run.track, plan.plan):
        LIST.write_bytes(b"")
        with pytest.raises(Enough):
            command()


def dvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([BIN / "dvc", *arguments], capture_output=True, text=True, check=False)


def test_dvc_itself_goes_on_with_what_was_mended(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dvc.yaml").write_text("stages: {one: {cmd: echo 1 > a, deps: [b], outs: [a]}}")
    (folder / "b").write_text("b")
    assert dvc("init", "--no-scm", "-f").returncode == 0
    LIST.parent.mkdir(parents=True, exist_ok=True)
    LIST.write_bytes(b"")
    failed = dvc("repro")
    assert (failed.returncode, "Unable to read RWLock-file" in failed.stderr) == (255, True)
    mend_locks()
    assert dvc("repro").returncode == 0
    whole = LOCKFILE.read_bytes()
    for length in (0, whole.index(b"path:") + 5):
        LOCKFILE.write_bytes(whole[:length])
        assert dvc("repro").returncode == 255
        mend_locks()
        assert "dvc.lock was cut short by a process that was killed" in capsys.readouterr().err
        done = dvc("repro")
        assert (done.returncode, "Stage 'one' is cached" in done.stdout) == (0, True)
        assert LOCKFILE.read_bytes() == whole


def test_every_cut_that_dvc_does_not_read_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill can end the file after any byte."""
    monkeypatch.setattr(locks, "_refuse_if_dvc_runs", lambda file: None)
    LOCKFILE.write_text(WHOLE)
    mend_locks()
    assert LOCKFILE.read_text() == WHOLE
    kept = 0
    for length in range(len(WHOLE)):
        LOCKFILE.write_text(WHOLE[:length])
        try:
            Lockfile.validate(yaml.safe_load(WHOLE[:length]) or {}, "dvc.lock")
            is_read = True
        except (YAMLFileCorruptedError, YAMLValidationError, yaml.YAMLError):
            is_read = False
        mend_locks()
        assert is_read or not LOCKFILE.exists(), WHOLE[:length]
        kept += LOCKFILE.exists()
    assert kept > 10  # such as after a whole stage


def test_a_lockfile_between_whose_versions_a_person_decides_stays() -> None:
    conflict = WHOLE.replace("    deps:", "<<<<<<< HEAD\n    deps:\n=======\n    deps:\n>>>>>>> other", 1)
    LOCKFILE.write_text(conflict)
    mend_locks()
    assert LOCKFILE.read_text() == conflict


def test_a_project_that_dvc_cannot_read_is_told_in_its_words(folder: Path) -> None:
    """`dvc repro -q` alone ends with a code and no word."""
    assert dvc("init", "--no-scm", "-f").returncode == 0
    (folder / "params.yaml").write_text("runs: {}")
    (folder / "dvc.yaml").write_text("stages: {one: {cmd: echo 1 > a, outs: [a]}}")
    assert quiet_dvc("repro", "one") == 0
    (folder / "dvc.yaml").write_text("stages: {one: {cmd: exit 3, outs: [a]}}")
    assert quiet_dvc("repro", "one") == 255
    (folder / "dvc.yaml").write_text("stages: {one: {command: echo 1}}")
    with pytest.raises(InputError, match=r"dvc\.yaml"):
        quiet_dvc("repro", "one")
