"""Stages that train, end, are killed and start again, as `make live` shows them, and the rows that they end
in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from scratch_project import start
from tracked import CODE, OLD_LOADER, client, log, logged_rows, trainings

from pipeline import track
from pipeline.records import progress as progress_module
from pipeline.records.progress import FOLLOWER, progress
from pipeline.records.record import Record, load_record
from pipeline.settings import InputError
from pipeline.track import follow as following
from pipeline.track.database import open_experiment
from pipeline.track.follow import follow

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "EVERY", -1.0)
    monkeypatch.setattr(following, "PAUSE", 0.0)


@contextmanager
def training(project: Path, key: str, *, id: str | None = None) -> Iterator[Callable[[], None]]:
    """A stage that trains, with one point of each curve so far. Each call adds a point to each curve."""
    done = load_record(project / "records" / f"{key}.json")
    record = Record(done.stage, done.name, done.params, id=id or done.id)
    points = 0
    with progress(record, project / ".work/live") as on_point:

        def add_points() -> None:
            nonlocal points
            points += 1
            for name, curve in done.curves.items():
                first = {column: [values[0] + i for i in range(points)] for column, values in curve.items()}
                on_point(name, first | {"images": [curve["images"][0] * (i + 1) for i in range(points)]})

        add_points()
        yield add_points


def follow_for(work: Path, *between: Callable[[], Any]) -> None:
    """Follow for one round, and for one more after each of these calls."""

    def rounds() -> Iterator[None]:
        yield
        for call in between:
            call()
            yield

    follow(work, rounds=rounds())


def live_runs() -> dict[str, Any]:
    mlflow, experiment = open_experiment()
    return {run.info.run_name: run for run in mlflow.search_runs([experiment], "tags.kind = 'stage'")}


def files(work: Path) -> list[Path]:
    return [file for file in (work / "live").iterdir() if file.name != FOLLOWER]


def steps(run: Any, metric: str) -> list[int]:
    return [point.step for point in client().get_metric_history(run.info.run_id, metric)]


def test_a_stage_is_shown_while_it_trains_and_makes_room_for_its_row(project: Path) -> None:
    work = project / ".work"
    seen: list[tuple[str, list[int]]] = []

    def see() -> None:
        run = live_runs()["distill kd seed 0"]
        seen.append((run.info.status, steps(run, "accuracy_val")))

    with ExitStack() as stack:
        add_points = stack.enter_context(training(project, "distill/kd"))
        follow_for(work, see, add_points, see, stack.close, see)
    assert seen == [("RUNNING", [20]), ("RUNNING", [20, 40]), ("FINISHED", [20, 40])]
    shown = live_runs()
    assert set(shown) == {f"distill kd seed {seed}" for seed in range(3)}
    assert shown["distill kd seed 1"].data.params["method"] == "kd"
    assert {"loss", "accuracy_val"} <= shown["distill kd seed 1"].data.metrics.keys()
    assert not files(work)
    logged = log(project)
    assert not live_runs()  # the same curves are below the row now
    assert steps(trainings(logged.runs["kd"])["kd seed 0"], "accuracy_val") == [20, 40, 60]  # images shown


def test_rows_are_the_same_whether_somebody_followed_or_not(project: Path) -> None:
    with training(project, "teacher/big"):
        follow_for(project / ".work")
        tags = live_runs()["teacher big"].data.tags
    assert "pipeline_key" not in tags  # so that it is neither listed as a row nor taken for one
    logged = log(project)
    (training_run,) = trainings(logged.teachers["big"]).values()
    assert steps(training_run, "accuracy_val") == [40, 80]
    assert len(logged_rows(logged)) == 4


def test_a_killed_stage_is_shown_as_killed(project: Path) -> None:
    work = project / ".work"
    with training(project, "distill/kd"):
        (file,) = work.glob("live/distill-kd-*.json")
        unfinished = file.read_text()
        follow_for(work)
        assert {run.info.status for run in live_runs().values()} == {"RUNNING"}
    file.write_text(unfinished)  # as if it had been killed before it could write its end
    follow_for(work)
    assert [run.info.status for run in live_runs().values()] == ["KILLED"] * 3
    assert not files(work)


@pytest.mark.parametrize("swept", [False, True])
def test_the_next_try_of_a_killed_stage_is_a_run_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch, swept: bool
) -> None:
    """Also if the second try has swept the first one's file, because nobody followed for long."""
    work = project / ".work"
    with training(project, "distill/kd"):
        (file,) = work.glob("live/distill-kd-*.json")
        unfinished = file.read_text()
        follow_for(work)
        killed = live_runs()["distill kd seed 0"]
    file.write_text(unfinished)
    file.with_suffix(".lock").touch()
    monkeypatch.setattr(progress_module, "PATIENCE", 0.0 if swept else 30.0)
    with training(project, "distill/kd", id="another"):
        assert file.exists() != swept
        follow_for(work)
        mlflow, experiment = open_experiment()
        statuses = {
            run.data.tags["record"]: run.info.status
            for run in mlflow.search_runs([experiment], "tags.kind = 'stage'")
        }
    assert client().get_run(killed.info.run_id).info.status == "KILLED"
    assert statuses == {killed.data.tags["record"]: "KILLED", "another": "RUNNING"}


def test_to_stop_following_and_start_again_repeats_nothing(project: Path) -> None:
    with training(project, "pretrain/fitnet") as add_points:
        for _ in range(3):
            follow_for(project / ".work")
            add_points()
    mlflow, experiment = open_experiment()
    assert len(mlflow.search_runs([experiment], "tags.kind = 'stage'")) == 3
    assert steps(live_runs()["pretrain fitnet seed 0"], "hint_loss") == [20, 40, 60]


def test_the_link_shows_what_trains_and_nothing_else(project: Path) -> None:
    log(project)
    link = track.view_link(5055, "training")
    assert "compareRunsMode=CHART" in link
    mlflow, experiment = open_experiment()
    view = json.loads(mlflow.get_experiment(experiment).tags["mlflow.sharedViewState.training"])
    state = json.loads(zlib.decompress(b64decode(view["state"].removeprefix("deflate;"))))
    with training(project, "distill/kd"):
        follow_for(project / ".work")
        found = mlflow.search_runs(
            [experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"]
        )
    assert {run.info.run_name for run in found} == {f"distill kd seed {seed}" for seed in range(3)}


def test_it_says_when_nothing_trains_and_when_a_first_point_is_awaited(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = project / ".work"
    follow_for(work, lambda: None)
    assert capsys.readouterr().out.count(following.NOTHING) == 1  # once, not in each round
    record = Record("distill", "kd", {})
    with progress(record, work / "live"):
        follow_for(work)
        assert capsys.readouterr().out == f"{following.BEGUN}\n"
    with training(project, "distill/kd"):
        follow_for(work, lambda: None)
        assert following.NOTHING not in (said := capsys.readouterr().out)
        assert "distill kd seed 0: its curves are in MLflow from now on" in said


def test_only_one_process_follows(project: Path) -> None:
    refused = []

    def follow_too() -> None:
        with pytest.raises(InputError, match="Another process already follows the training") as error:
            follow(project / ".work", rounds=[])
        refused.append(error)

    follow_for(project / ".work", follow_too)
    assert refused


def test_a_server_that_is_down_is_reported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="No model is lost"):
        follow_for(project / ".work")


def test_ctrl_c_ends_the_command_quietly(project: Path) -> None:
    options = ["--work", str(project / ".work"), "--port", "5000"]
    command = [sys.executable, "-m", "pipeline.project", "live", *options]
    environment = os.environ | {"DVC_ROOT": str(project)}
    running = start(command, CODE, environment, stderr=subprocess.PIPE)
    assert running.stdout is not None
    printed = running.stdout.readline()
    while not (project / ".work/live" / FOLLOWER).exists():
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (0, f"{following.NOTHING}\n", "")
    assert "viewStateShareKey=training" in printed
    shutil.rmtree(project / ".work")
