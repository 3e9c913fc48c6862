"""What trains now, in MLflow: stages that go on, end, die and are tried again, and the rows that take them in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabricated
import pytest
from project import heeding_ctrl_c
from tracked import CODE, OLD_LOADER, client, log, make_project

from pipeline import live, track
from pipeline.inputs import InputError
from pipeline.live import FOLLOWER, shown
from pipeline.record import Record
from pipeline.track import follow as following
from pipeline.track.follow import follow
from pipeline.track.store import opened

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(following, "PAUSE", 0.0)
    return make_project(tmp_path / "my project", monkeypatch)


def record(project: Path, key: str) -> Record:
    """As the stage has it while it trains: without the last two points of its curves."""
    told = Record(**json.loads((project / "records" / f"{key}.json").read_text()))
    told.curves = {name: {column: values[:1] for column, values in curve.items()} for name, curve in told.curves.items()}
    return told


def go_on(told: Record) -> None:
    for curve in told.curves.values():
        for values in curve.values():
            values.append(values[-1] + 1)


def looks(work: Path, *between: Any) -> None:
    """One process that looks on: once, and again after each of these."""

    def steps() -> Iterator[None]:
        yield
        for step in between:
            step()
            yield

    follow(work, looks=steps())


def stages() -> dict[str, Any]:
    store, experiment = opened()
    return {run.info.run_name: run for run in store.search_runs([experiment], "tags.kind = 'stage'")}


def steps_of(run: Any, metric: str) -> list[int]:
    return [point.step for point in client().get_metric_history(run.info.run_id, metric)]


def test_a_stage_is_shown_as_it_goes_on_and_its_row_takes_it_in(project: Path) -> None:
    told, work = record(project, "distill/kd"), project / ".work"
    seen: list[tuple[str, list[int]]] = []

    def look() -> None:
        seen.append((stages()["distill kd"].info.status, steps_of(stages()["distill kd"], "distill/seed-0/val_accuracy")))

    stage = shown(told, work / "live/kd.json")
    tell = stage.__enter__()
    tell()

    def train() -> None:
        go_on(told)
        tell()

    looks(work, look, train, look, lambda: stage.__exit__(None, None, None), look)
    assert seen == [("RUNNING", [1]), ("RUNNING", [1, 2]), ("FINISHED", [1, 2])]
    assert stages()["distill kd"].data.params["run.method.name"] == "kd"
    assert not list((work / "live").glob("kd.*"))
    logged = log(project)
    assert stages()["distill kd"].data.tags["mlflow.parentRunId"] == logged.runs["kd"]
    # another row for which DVC took that stage from its cache doesn't get it
    fabricated.fabricate(project / "records", again=["evaluate/kd"])
    assert log(project).runs["kd"] != logged.runs["kd"]
    assert stages()["distill kd"].data.tags["mlflow.parentRunId"] == logged.runs["kd"]


def test_rows_are_the_same_whether_anybody_looked_on(project: Path) -> None:
    with shown(record(project, "teacher/big"), project / ".work/live/big.json") as tell:
        tell()
        looks(project / ".work")
    logged = log(project)
    assert stages()["teacher big"].data.tags["mlflow.parentRunId"] == logged.teachers["big"]
    row = client().get_run(logged.teachers["big"])
    assert steps_of(row, "teacher/epochs/val_accuracy") == [1, 2]
    assert "pipeline_key" not in stages()["teacher big"].data.tags  # so that no row is mistaken for it, nor listed with it


def test_a_stage_that_died_is_told_so(project: Path) -> None:
    told, work = record(project, "distill/kd"), project / ".work"
    with shown(told, work / "live/kd.json") as tell:
        tell()
        left = (work / "live/kd.json").read_text()
        looks(work)
        assert stages()["distill kd"].info.status == "RUNNING"
    (work / "live/kd.json").write_text(left)  # as if it had been killed before it could tell its end
    looks(work)
    assert stages()["distill kd"].info.status == "KILLED"
    assert not list((work / "live").glob("kd.*"))


def test_the_next_try_is_a_run_of_its_own(project: Path) -> None:
    first, work = record(project, "distill/kd"), project / ".work"
    with shown(first, work / "live/kd.json") as tell:
        tell()
        looks(work)
        died = stages()["distill kd"].info.run_id
        with pytest.MonkeyPatch.context() as patch:  # while nobody looked on it was killed and began again
            patch.setattr(live, "lock_of", lambda file: file.with_suffix(".other"))
            second = record(project, "distill/kd")
            second.id = "another"
            with shown(second, work / "live/kd.json") as tell:
                tell()
                looks(work)
    store, experiment = opened()
    found = {run.data.tags["record"]: run.info.status for run in store.search_runs([experiment], "tags.kind = 'stage'")}
    assert client().get_run(died).info.status == "KILLED"
    assert found == {first.id: "KILLED", "another": "RUNNING"}


def test_who_looks_on_again_repeats_nothing(project: Path) -> None:
    told, work = record(project, "pretrain/fitnet"), project / ".work"
    with shown(told, work / "live/fitnet.json") as tell:
        for _ in range(3):
            tell()
            looks(work)
            go_on(told)
    assert len(opened()[0].search_runs([opened()[1]], "tags.kind = 'stage'")) == 1
    assert steps_of(stages()["pretrain fitnet"], "hint/seed-0/loss") == [1, 2, 3]


def test_the_link_shows_what_trains_and_nothing_else(project: Path) -> None:
    log(project)
    link = track.view_link(5055, "training")
    assert "compareRunsMode=CHART" in link
    store, experiment = opened()
    view = json.loads(store.get_experiment(experiment).tags["mlflow.sharedViewState.training"])
    state = json.loads(zlib.decompress(b64decode(view["state"].removeprefix("deflate;"))))
    with shown(record(project, "distill/kd"), project / ".work/live/kd.json") as tell:
        tell()
        looks(project / ".work")
        found = store.search_runs([experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"])
    assert [run.info.run_name for run in found] == ["distill kd"]


def test_one_process_looks_on(project: Path) -> None:
    refused = []

    def another() -> None:
        with pytest.raises(InputError, match="already being followed by another process") as error:
            follow(project / ".work", looks=[])
        refused.append(error)

    looks(project / ".work", another)
    assert refused


def test_a_store_that_is_down_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="No model is lost"):
        looks(project / ".work")


def test_ctrl_c_ends_the_looking_on_quietly(project: Path) -> None:
    command = [sys.executable, "-m", "stages.live", "--work", str(project / ".work"), "--port", "5000"]
    running = subprocess.Popen(
        command, cwd=CODE, env=os.environ | {"DVC_ROOT": str(project)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heeding_ctrl_c,
    )  # fmt: skip
    assert running.stdout is not None
    said = running.stdout.readline()
    while not (project / ".work/live" / FOLLOWER).exists():
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (0, "", "")
    assert "viewStateShareKey=training" in said
    shutil.rmtree(project / ".work")
