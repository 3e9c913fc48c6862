"""Rows when servers are down, databases are lost, processes are killed or run at once, and DVC uses its
cache."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import browser
import fabricated
import pytest
import yaml
from scratch_project import BIN, Project, heeding_ctrl_c
from tracked import OLD_LOADER, client, content, fail_once, log, logged_rows, make_project, start_logging

from pipeline import track
from pipeline.project.check import write_names
from pipeline.settings import InputError
from pipeline.track import database

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def tags(run: str) -> dict[str, str]:
    return dict(client().get_run(run).data.tags)


def active(database: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(database)) as connection:
        rows = "SELECT r.name, r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = 'pipeline_key'"
        return sorted(connection.execute(f"{rows} AND r.lifecycle_stage = 'active'"))


FINISHED = [(name, "FINISHED") for name in ("alone", "big", "fitnet", "kd")]


# --- the database ---


def test_a_server_that_is_down_costs_one_command_later(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {
        path: path.read_bytes() for path in project.rglob("*") if path.is_file() and path.suffix != ".db"
    }
    with socket.socket() as taken:  # bound but not listening, so it refuses at once
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{taken.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"No model is lost.*`make track`") as caught:
            log(project)
    assert time.monotonic() - start < 20
    assert "secret" not in str(caught.value)
    assert "MLflow at http://127.0.0.1:" in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before
    assert not (project / "reports").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert log(project).new == ["big", "alone", "kd", "fitnet"]


def test_a_database_that_was_half_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "my project", monkeypatch, fresh=True)

    def dies(*_arguments: object) -> None:
        with closing(sqlite3.connect(project / "mlflow.db")) as half:
            half.execute("CREATE TABLE _alembic_tmp_experiments (id)")
        raise SystemExit  # which leaves the same things behind as a kill

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(database, "_connect", dies)
        log(project)
    assert log(project).new == ["big", "alone", "kd", "fitnet"]
    assert active(project / "mlflow.db") == FINISHED
    assert not list(project.glob("*.building"))


def test_rows_are_completed_after_the_database_was_lost_midway(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_once(patch, "log_batch", ConnectionError("gone"), at=9)  # of the third row's second training
        with pytest.raises(InputError, match="gone"):
            log(project)
    assert active(project / "mlflow.db") == [("alone", "FINISHED"), ("big", "FINISHED"), ("kd", "FAILED")]
    assert log(project).new == ["kd", "fitnet"]
    assert active(project / "mlflow.db") == FINISHED
    assert not (project / "reports" / "mlflow.json.partial").exists()


def test_a_database_that_is_built_again_has_the_same_numbers(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone here: the numbers come from the records alone."""
    before = content(log(project))
    assert sum(len(points) for points in before["fitnet seed 0"][0].values()) > 10
    assert len(before) == 4 + 1 + 3 * 3  # rows, and the trainings below them
    make_project(tmp_path / "clone", monkeypatch)
    assert content(log(tmp_path / "clone")) == before


# --- processes ---


def test_after_a_killed_process_the_next_one_writes_each_row_once(project: Path) -> None:
    kill = "MlflowClient.log_inputs = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)"
    process = start_logging(project, change=kill)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert active(project / "mlflow.db") == [("big", "RUNNING")]
    assert log(project).new == ["big", "alone", "kd", "fitnet"]
    assert active(project / "mlflow.db") == FINISHED


def test_a_row_that_another_machine_is_writing_is_left_alone(project: Path) -> None:
    first = log(project)
    theirs = client().create_run(
        first.experiment, tags={"pipeline_key": tags(first.runs["kd"])["pipeline_key"], "writer": "another"}
    )
    assert log(project).runs == first.runs
    assert client().get_run(theirs.info.run_id).info.lifecycle_stage == "active"
    client().set_terminated(theirs.info.run_id)  # it did not see our row either
    row = log(project).runs["kd"]
    assert row in (first.runs["kd"], theirs.info.run_id)
    assert [
        run.info.run_id
        for run in logged_rows(first)
        if run.data.tags["pipeline_key"] == tags(row)["pipeline_key"]
    ] == [row]


@pytest.mark.slow
def test_processes_at_once_on_a_fresh_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_project(tmp_path / "my project", monkeypatch, fresh=True)
    racing = [start_logging(root, out=f"{n}.json") for n in range(3)]
    for process in racing:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    written = [json.loads((root / f"{n}.json").read_text()) for n in range(3)]
    assert written == [written[0]] * 3
    assert active(root / "mlflow.db") == FINISHED


# --- DVC's cache ---


def test_a_cached_stage_links_to_the_row_that_it_was_made_for(project: Path) -> None:
    first = log(project)
    big, kd = tags(first.teachers["big"]), tags(first.runs["kd"])
    assert not [name for name in big if name.startswith("cached.")]
    assert {name: run for name, run in kd.items() if name.startswith("cached.")} == {
        "cached.prepare": first.teachers["big"],
        "cached.teacher": first.teachers["big"],
    }
    fabricated.fabricate(project / "records", again=["evaluate/kd"])
    again = tags(log(project).runs["kd"])
    assert {name for name in again if name.startswith("cached.")} == {
        f"cached.{stage}" for stage in ("prepare", "teacher", "pretrain", "distill", "export", "benchmark")
    }
    assert again["cached.distill"] == first.runs["kd"]
    assert again["cached.teacher"] == first.teachers["big"]  # the row that made it, not one that used it too
    note = again["mlflow.note.content"]
    link = f"[kd](#/experiments/{first.experiment}/runs/{first.runs['kd']})"
    assert f"| distill kd | cached, made by {link} |" in note
    assert "| evaluate kd | this row |" in note


def test_records_from_the_run_cache_have_their_old_rows(project: Path) -> None:
    first = log(project)
    fabricated.fabricate(project / "records", again=["distill/kd", "evaluate/kd"])
    assert log(project).new == ["kd"]
    fabricated.fabricate(project / "records")
    back = log(project)
    assert (back.new, back.runs) == ([], first.runs)


def test_a_row_has_the_names_of_all_experiments_that_share_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tall-larch", "tall", "tall-larch"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        kd = log(project).runs["kd"]
    assert tags(kd)["dvc.exp"] == "tall-larch tall"


# --- through DVC and make ---


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with only the last stage of the graph, and what the other stages would have made."""
    runs = {name: {"teacher": "big", "seeds": [0]} for name in fabricated.NAMES["runs"]}
    made = Project(
        tmp_path_factory.mktemp("a place") / "the project",
        {"teachers": {"big": {}}, "runs": runs, "analysis": {}},
    )
    made.params()
    stage = yaml.safe_load((made.place / "dvc.yaml").read_text())["stages"]["track"]
    (made.place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"track": stage}}))
    (made.place / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (made.place / ".gitignore").write_text(
        ".venv\n__pycache__/\n.work/\nmlflow.db*\nmlartifacts/\nreports/mlflow.json\n"
    )
    fabricated.fabricate(made.place / "records")
    # as the stage `check` leaves them where there are none
    for empty in ("records/analyse/runs.txt", "records/knowledge/names.txt"):
        (made.place / empty).parent.mkdir()
        write_names({}, made.place / empty)
    for dep in stage["deps"]:
        path = made.place / dep
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dep) if path.suffix or "code" in dep else path.mkdir()
    for name in runs:
        (made.place / "models/export" / name).mkdir(parents=True)
        (made.place / "models/export" / name / "student.onnx").write_text(name)
    (made.place / "plots/curves.csv").write_text("a\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "made"]):
        made.do("git", *command)
    return made


@pytest.mark.slow
def test_after_a_failure_one_command_logs_what_is_missing(graph: Project) -> None:
    graph.env["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    graph.repro(fails=True)
    assert "No model is lost" in " ".join(graph.printed.split())
    assert "Traceback" not in graph.printed
    del graph.env["MLFLOW_TRACKING_URI"]
    assert graph.repro("track") == ["track"]
    assert sorted(graph.rows()) == ["alone", "big", "fitnet", "kd"]
    for file in graph.place.glob("mlflow.db*"):
        file.unlink()
    assert "4 new of 4 rows" in graph.do("make", "-s", "-o", "setup", "track")
    assert "0 new of 4 rows" in graph.do("make", "-s", "-o", "setup", "track")
    assert sorted(graph.rows()) == ["alone", "big", "fitnet", "kd"]


@pytest.mark.slow
def test_experiments_elsewhere_and_at_once_log_into_the_projects_fresh_store(graph: Project) -> None:
    for file in graph.place.glob("mlflow.db*"):
        file.unlink()
    graph.do("dvc", "exp", "run", "--queue", "-n", "one", "-S", "runs.kd.seeds=[1]")
    graph.do("dvc", "exp", "run", "--queue", "-n", "two", "-S", "runs.kd.seeds=[2]")
    command = [str(BIN / "dvc"), "queue", "start", "-j", "2"]
    with open(os.devnull, "wb") as nowhere:  # the workers, and so a pipe, would stay for a while
        workers = subprocess.Popen(
            command, cwd=graph.place, env=graph.env, stdout=nowhere, stderr=nowhere, process_group=0
        )
    try:
        deadline = time.monotonic() + 240
        while (status := graph.do("dvc", "queue", "status")).count("Success") < 2:
            assert "Failed" not in status, (
                status + graph.do("dvc", "queue", "logs", "one") + graph.do("dvc", "queue", "logs", "two")
            )
            assert time.monotonic() < deadline, status
            time.sleep(1)
    finally:
        os.killpg(workers.pid, signal.SIGTERM)
        workers.wait(timeout=60)
    assert sorted(graph.rows()) == ["alone", "big", "fitnet", "kd"]
    graph.do("dvc", "exp", "run", "--temp", "-n", "three", "-S", "runs.kd.seeds=[3]")
    assert sorted(graph.rows()) == ["alone", "big", "fitnet", "kd"]
    with closing(sqlite3.connect(graph.place / "mlflow.db")) as database:
        names = {
            frozenset(value.split())
            for (value,) in database.execute(
                "SELECT t.value FROM tags t JOIN tags k USING (run_uuid) "
                "WHERE t.key = 'dvc.exp' AND k.key = 'pipeline_key'"
            )
        }
        (artifacts,) = database.execute("SELECT DISTINCT artifact_uri FROM runs").fetchall()[0]
    assert names == {frozenset({"one", "two", "three"})}
    assert "/the%20project/mlartifacts/" in artifacts


# --- the page ---


@contextmanager
def server(root: Path) -> Iterator[int]:
    """MLflow, as `make ui` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "mlflow"), "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        database.tracking_uri(),
        "--artifacts-destination",
        str(root / "mlartifacts"),
    ]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    running = subprocess.Popen(
        command, cwd=root, env=env, stderr=subprocess.DEVNULL, process_group=0, preexec_fn=heeding_ctrl_c
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                break
            except URLError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield port
    finally:
        os.killpg(running.pid, signal.SIGINT)
        running.wait(timeout=60)


@pytest.mark.slow
def test_the_page_shows_the_best_student_first(project: Path, tmp_path: Path) -> None:
    log(project)
    with server(project) as port:
        page = browser.dom(track.view_link(port), tmp_path / "me", "--window-size=2400,1000")
    names = re.findall(r'href="#/experiments/\d+/runs/\w+[^"]*"[^>]*>(?:<[^>]*>)*(\w+)', page)
    assert list(dict.fromkeys(names)) == ["fitnet", "kd", "alone", "big"], page[-3000:]
    columns = [name for name in re.findall(r">(accuracy_test|latency_ms|size_mb|method|student|gain)<", page)]
    assert set(columns) == {"accuracy_test", "latency_ms", "size_mb", "method", "student", "gain"}
