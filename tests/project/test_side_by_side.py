"""Several parts of the graph at the same time."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from stub_project import Ran, StubProject

from pipeline.project import dvc, side_by_side
from pipeline.project.ahead import Stage
from pipeline.settings import InputError

# in place of dvc: it takes stages one after the other, in the time that the test says
FAKE = """#!{python} -IS
import json, os, signal, subprocess, sys, time
told = json.loads(open("told").read())
stages = sys.argv[sys.argv.index("-s") + 1 :] if "-s" in sys.argv else sys.argv[2:]
for stage in stages:
    begun, how = time.monotonic(), "done"
    print(f"Running stage '{{stage}}'", flush=True)
    print("To enable auto staging, run:", flush=True)
    try:
        time.sleep(told["seconds"].get(stage, 0.05))
    except KeyboardInterrupt:
        how = "stopped"
        time.sleep(0.3)
    entry = {{"stage": stage, "begun": begun, "ended": time.monotonic(), "how": how, "words": sys.argv[1:]}}
    entry["threads"] = os.environ.get("OMP_NUM_THREADS")
    entry["devices"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    open("log", "a").write(json.dumps(entry) + "\\n")
    if how == "stopped" or stage in told["fails"]:
        print("Error: there is no such thing.", file=sys.stderr)
        sys.exit(255)
"""
TEACHER = Stage("teacher@big", "runs", ("trial",))


def run(name: str, *before: str) -> list[Stage]:
    return [Stage(f"distill@{name}", "runs", before), Stage(f"evaluate@{name}", "runs", (f"distill@{name}",))]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "dvc").write_text(FAKE.format(python=sys.executable))
    (tmp_path / "dvc").chmod(0o755)
    (tmp_path / "params.yaml").write_text("{}")
    monkeypatch.setattr(dvc, "BIN", tmp_path)
    monkeypatch.setattr(side_by_side, "devices", list)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    tell()
    before = set(psutil.Process().children(recursive=True))  # of other tests
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


def tell(*, fails: tuple[str, ...] = (), **seconds: float) -> None:
    named = {f"distill@{name}": time for name, time in seconds.items()}
    Path("told").write_text(json.dumps({"fails": fails, "seconds": named}))


def log() -> dict[str, dict[str, Any]]:
    return {entry["stage"]: entry for entry in map(json.loads, Path("log").read_text().splitlines())}


def at_once(entries: list[dict[str, Any]]) -> int:
    """How many were at work at the same time, at most."""
    spans = [(float(each["begun"]), float(each["ended"])) for each in entries]
    return max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans)


@pytest.mark.parametrize("jobs", [2, 3])
def test_so_many_runs_are_at_work_as_there_are_slots(jobs: int) -> None:
    tell(a=0.5, b=0.5, c=0.5)
    side_by_side.side_by_side([*run("a"), *run("b"), *run("c")], jobs)
    found = log()
    assert at_once([found[f"distill@{name}"] for name in "abc"]) == jobs
    assert all(found[f"distill@{name}"]["ended"] <= found[f"evaluate@{name}"]["begun"] for name in "abc")
    assert found["distill@a"]["words"] == ["--wait-for-lock", "repro", "-s", "distill@a", "evaluate@a"]


def test_a_run_waits_for_its_teacher_and_all_for_what_they_need(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare = Stage("trial", "runs")
    stages = [prepare, TEACHER, *run("a", "teacher@big"), *run("b"), Stage("report", "runs", ("evaluate@a",))]
    side_by_side.side_by_side(stages, 2)
    found = log()
    assert set(found) == {stage.name for stage in stages} - {"report"}
    assert found["trial"]["words"] == ["repro", "trial"]
    assert found["trial"]["ended"] <= min(each["begun"] for name, each in found.items() if name != "trial")
    assert found["teacher@big"]["ended"] <= found["distill@a"]["begun"]
    assert found["distill@b"]["begun"] <= found["teacher@big"]["ended"]
    printed = capsys.readouterr().out
    assert "3 parts of the graph, 2 at a time: teacher@big, a, b" in printed
    assert "\na           | Running stage 'distill@a'\n" in printed
    assert "\nteacher@big | done after " in printed
    assert "auto staging" not in printed


def test_each_slot_has_threads_and_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "devices", lambda: ["4", "6"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(10)))
    tell(a=0.4, b=0.4)
    side_by_side.side_by_side([*run("a"), *run("b"), *run("c")], 2)
    found = log()
    assert {each["threads"] for each in found.values()} == {"5"}
    assert (found["distill@a"]["devices"], found["distill@b"]["devices"]) == ("4", "6")
    assert found["distill@a"]["devices"] == found["evaluate@a"]["devices"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    side_by_side.side_by_side(run("a"), 2)
    assert log()["distill@a"]["threads"] == "3"


def test_the_others_end_where_one_fails(capsys: pytest.CaptureFixture[str]) -> None:
    tell(fails=("teacher@big",), b=0.3, c=0.3)
    stages = [TEACHER, *run("a", "teacher@big"), *run("b"), *run("c")]
    with pytest.raises(InputError) as failed:
        side_by_side.side_by_side(stages, 2)
    assert str(failed.value) == (
        "teacher@big failed: see the lines above. a did not begin, because teacher@big failed. b, c ended "
        "well, and will not run again. Remove the cause, then run this again."
    )
    assert {"evaluate@b", "evaluate@c"} < set(log())
    assert "distill@a" not in log()
    printed = capsys.readouterr()
    assert "teacher@big | failed (exit code 255) after" in printed.out
    assert printed.err.splitlines()[-1] == "Error: there is no such thing."


def test_nothing_runs_side_by_side_if_what_comes_before_fails() -> None:
    tell(fails=("trial",))
    with pytest.raises(SystemExit) as ended:
        side_by_side.side_by_side([Stage("trial", "runs"), TEACHER], 2)
    assert ended.value.code == 255
    assert set(log()) == {"trial"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_once_and_begins_nothing(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = signal.signal(number, signal.default_int_handler)
    tell(a=20, b=20)
    timer = threading.Timer(1.0, os.kill, [os.getpid(), number])
    timer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            side_by_side.side_by_side([*run("a"), *run("b"), *run("c")], 2)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, usual)
    assert stopped.value.args == (number,)
    assert time.monotonic() - begun < 10
    assert {name: each["how"] for name, each in log().items()} == dict.fromkeys(
        ("distill@a", "distill@b"), "stopped"
    )
    assert "a | stopped after" in capsys.readouterr().out


def test_ctrl_c_stays_ignored_where_it_was() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell(a=1.5)
    timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        side_by_side.side_by_side(run("a"), 2)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert log()["evaluate@a"]["how"] == "done"


def test_what_was_started_in_the_background_of_a_shell_can_be_stopped() -> None:
    """Such a shell lets its processes ignore Ctrl-C, which is what the parts are stopped with."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tell(a=20)
    timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side.side_by_side(run("a"), 2)
    finally:
        signal.signal(signal.SIGINT, usual[0])
        signal.signal(signal.SIGTERM, usual[1])
    assert log()["distill@a"]["how"] == "stopped"


def test_nothing_goes_on_where_nobody_can_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(a=0.2, b=20)

    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(side_by_side._Scheduler, "_say", gone)
    with pytest.raises(BrokenPipeError):
        side_by_side.side_by_side([*run("a"), *run("b")], 2)
    assert log()["distill@b"]["how"] == "stopped"


def by_name(ran: list[Ran]) -> dict[str, Ran]:
    return {each.stage: each for each in ran}


def test_dvc_itself_records_what_ran_side_by_side(tmp_path: Path) -> None:
    """The real graph through real DVC, with stages that only write."""
    project = StubProject(tmp_path / "a place" / "the project", "a", "b")
    project.tell(seconds={"distill@a": 6, "distill@b": 6})
    printed = project.handdown("run", "--jobs", "2")
    ran = by_name(project.ran())
    assert len(ran) == 4 + 1 + 5 * 2 + 2
    assert at_once([vars(ran["distill@a"]), vars(ran["distill@b"])]) == 2
    assert (project.place / "reports/table.txt").read_text() == printed[printed.rindex("report ") :]
    assert project.is_up_to_date()
    project.do("dvc", "repro")
    assert project.ran() == []


@pytest.mark.slow
def test_side_by_side_is_as_one_after_the_other(tmp_path: Path) -> None:
    """What is made, after a failure and a stop as well."""
    names = ("a", "b", "c")
    one = StubProject(tmp_path / "one" / "project", *names, teachers=("big", "other"))
    several = StubProject(tmp_path / "several" / "project", *names, teachers=("big", "other"))
    one.handdown("run")
    several.tell(fails=("distill@b",))
    printed = several.handdown("run", "--jobs", "3", fails=True)
    assert printed.rstrip().endswith("Remove the cause, then run this again.")
    assert "Error: there is no such thing. Go elsewhere." in printed
    ran = by_name(several.ran())
    assert {"export@a", "export@c"} < set(ran)
    assert {"evaluate@b", "report"} & set(ran) == set()
    several.tell(seconds={"distill@b": 60.0})
    with several.start("run", "--jobs", "2") as process:
        assert process.stdout is not None
        while "distill@b is at work" not in process.stdout.readline():
            pass
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert [each.how for each in several.ran()] == ["stopped"]
    several.tell()
    several.handdown("run", "--jobs", "2")
    assert [each.stage for each in several.ran()][:1] == ["distill@b"]
    assert several.outputs() == one.outputs()
    assert several.is_up_to_date()
