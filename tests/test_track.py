import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import fabricated
import pytest

from pipeline import report, track
from pipeline.inputs import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated"  # by sqlalchemy 2.1; mlflow 3.17 still uses it
)
RUNS, TEACHERS = fabricated.NAMES["runs"], fabricated.NAMES["teachers"]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as `track` makes it where there is none; making one takes seconds."""
    root = tmp_path_factory.mktemp("first project")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        patch.setenv("DVC_ROOT", str(root))
        track.view_link(5000)
    return root / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a space in its name, seen from another working directory, as a stage in `dvc exp run --temp` sees it."""
    clean(monkeypatch)
    return make_project(tmp_path / "my project", store, monkeypatch)


def clean(patch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME"):
        patch.delenv(name, raising=False)
    for name, value in track.QUIET.items():
        patch.setenv(name, value)


def make_project(root: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fabricated.fabricate(root / "records")
    for name in RUNS:
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "student.onnx").write_bytes(b"onnx of " + name.encode())
    (root / "report.md").write_text("# Report\n")
    with closing(sqlite3.connect(store)) as made, closing(sqlite3.connect(root / "mlflow.db")) as copy:
        made.backup(copy)
        copy.execute("UPDATE experiments SET artifact_location = ?", ((root / "mlartifacts").as_uri(),))
        copy.commit()
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")
    monkeypatch.setenv("DVC_ROOT", str(root))
    return root


def log(root: Path, *, runs: Sequence[str] = RUNS) -> track.Logged:
    bundles = {name: [root / "models" / name] for name in runs}
    return track.log(
        root / "records", runs=runs, teachers=TEACHERS, artifacts=bundles, common=[root / "report.md"], out=root / "reports" / "mlflow.json"
    )


def client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(track.tracking_uri())


def rows(logged: track.Logged) -> list[Any]:
    return list(client().search_runs([logged.experiment]))


def history(run: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run, metric)]


def test_a_row_holds_everything(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "tall-larch")
    logged = log(project)
    assert logged.new == ["big", "alone", "kd", "fitnet"]
    run = client().get_run(logged.runs["fitnet"])
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 5 * 90_000  # its own five stages
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("best/")} == pytest.approx(
        {"best/top1": 0.80, "best/spread": 0.01, "best/gain": 0.08, "best/latency_ms": 0.5, "best/size_mb": 4.75, "best/params_m": 1.234}
    )
    assert run.data.metrics["evaluate/accuracy"] == pytest.approx(0.80)
    assert run.data.metrics["benchmark/macs_m"] == 177.0
    assert history(run.info.run_id, "hint/seed-1/loss") == [(1, 9.0), (2, 8.0)]
    assert history(run.info.run_id, "distill/seed-2/val_accuracy") == [(1, 0.5), (2, 0.6), (3, 0.83)]
    params = run.data.params
    assert (params["run.method.name"], params["run.method.term_weight"], params["protocol.shots"]) == ("fitnet", "100.0", "5")
    assert (params["data.source"], params["teacher.net"], params["run.seeds"]) == ("digits", "resnet32x4", "[0, 1, 2]")
    tags = run.data.tags
    assert (tags["kind"], tags["dvc.exp"]) == ("run", "tall-larch")
    assert (tags["hash.data"], tags["hash.teacher"], tags["hash.student"]) == ("d" * 64, "b" * 64, "5" * 64)
    assert tags["stage.distill"] == json.loads((project / "records" / "distill" / "fitnet.json").read_text())["id"]
    assert tags["environment.torch"] == "2.15.0"
    assert "| evaluate fitnet |" in tags["mlflow.note.content"]
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "d" * 32)
    found = {file.path for folder in ("", "fitnet", "records") for file in client().list_artifacts(run.info.run_id, folder)}
    assert {"report.md", "fitnet/student.onnx", "records/distill.json", "records/teacher.json"} <= found
    written = json.loads((project / "reports" / "mlflow.json").read_text())
    assert written == {
        "tracking_uri": "sqlite:///mlflow.db",
        "experiment": logged.experiment,
        "runs": logged.runs,
        "teachers": logged.teachers,
    }
    assert list((project / "elsewhere").iterdir()) == []
    assert Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " ")).is_relative_to(project / "mlartifacts")


def test_teacher_row_keeps_curve_and_final_number_apart(project: Path) -> None:
    run = log(project).teachers["big"]
    assert history(run, "teacher/epochs/val_accuracy") == [(1, 0.9), (2, 0.95)]
    assert history(run, "teacher/val_accuracy") == [(0, 0.95)]
    best = {key: value for key, value in client().get_run(run).data.metrics.items() if key.startswith("best/")}
    assert best == pytest.approx({"best/top1": 0.96, "best/size_mb": 29.5, "best/params_m": 7.433})


def test_twice_is_one_row_and_only_what_ran_again_is_new(project: Path) -> None:
    first = log(project)
    second = log(project)
    assert second.new == []
    assert (second.runs, second.teachers) == (first.runs, first.teachers)
    assert len(rows(second)) == 4
    fabricated.fabricate(project / "records", again=["evaluate/kd"])
    third = log(project)
    assert third.new == ["kd"]
    assert third.runs["kd"] != first.runs["kd"]
    assert third.runs["fitnet"] == first.runs["fitnet"]
    # every gain is measured against `alone`, so its new numbers make new rows of those compared with it
    fabricated.fabricate(project / "records", again=["evaluate/kd", "evaluate/alone"])
    assert log(project).new == ["alone", "kd", "fitnet"]


def test_records_of_dropped_runs_are_nobodys(project: Path) -> None:
    (project / "records" / "distill" / "fitnet.json").write_text("torn")
    logged = log(project, runs=["alone", "kd"])
    assert set(logged.runs) == {"alone", "kd"}
    assert {run.info.run_name for run in rows(logged)} == {"big", "alone", "kd"}


def test_a_row_that_breaks_is_failed_and_done_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_inputs", broken)
        with pytest.raises(KeyboardInterrupt):
            log(project)
    (experiment,) = (found.experiment_id for found in client().search_experiments() if found.name == track.EXPERIMENT)
    assert [run.info.status for run in client().search_runs([experiment])] == ["FAILED"]
    # one that was killed without a word is still RUNNING
    key = client().search_runs([experiment])[0].data.tags["pipeline_key"]
    client().create_run(experiment, tags={"pipeline_key": key})
    logged = log(project)
    assert len(logged.new) == 4
    assert [run.info.status for run in rows(logged)] == ["FINISHED"] * 4
    assert not (project / "reports" / "mlflow.json.partial").exists()


def test_rebuilt_elsewhere_it_has_the_same_numbers(project: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after deleting the database: the numbers come from the records alone."""

    def content(logged: track.Logged) -> dict[str, Any]:
        told = {}
        for run in rows(logged):
            points = {
                key: sorted((p.step, p.value, p.timestamp) for p in client().get_metric_history(run.info.run_id, key))
                for key in run.data.metrics
            }
            told[run.info.run_name] = (points, run.data.params, run.info.start_time, run.info.end_time)
        return told

    before = content(log(project))
    assert sum(len(points) for points in before["fitnet"][0].values()) > 40
    make_project(tmp_path / "clone", store, monkeypatch)
    assert content(log(tmp_path / "clone")) == before


def test_names_and_values_that_mlflow_refuses(project: Path) -> None:
    for stage in report.RUN_STAGES:
        path = project / "records" / stage / "kd.json"
        values = json.loads(path.read_text())
        values["metrics"] |= {"ratio@5": 0.25}
        values["params"] |= {"odd@key": {"α%": "x" * 7000}, "empty": {}}
        path.write_text(json.dumps(values))
    run = client().get_run(log(project).runs["kd"])
    assert run.data.metrics["distill/ratio_5"] == 0.25
    assert run.data.params["odd_key.__"] == "x" * 6000
    assert run.data.params["empty"] == "{}"


def test_a_param_that_two_stages_read_differently_is_kept_twice(project: Path) -> None:
    fabricated.edit(project / "records" / "evaluate" / "kd.json", params={"run": {"seeds": [7]}})
    run = client().get_run(log(project).runs["kd"])
    assert (run.data.params["run.seeds"], run.data.params["evaluate.run.seeds"]) == ("[0, 1, 2]", "[7]")


def test_more_points_than_one_call_takes(project: Path) -> None:
    path = project / "records" / "distill" / "kd.json"
    n = 1100
    curve = {"epoch": [float(i + 1) for i in range(n)], "loss": [1 / (i + 1) for i in range(n)], "seconds": [i / 10 for i in range(n)]}
    fabricated.edit(path, curves={"distill/seed-0": curve})
    assert [value for _, value in history(log(project).runs["kd"], "distill/seed-0/loss")] == curve["loss"]


def test_missing_artifact_and_missing_record_stop_before_anything_is_logged(project: Path) -> None:
    shutil.rmtree(project / "models" / "kd")
    with pytest.raises(InputError, match=r"models/kd is to be kept"):
        log(project)
    (project / "records" / "export" / "kd.json").unlink()
    with pytest.raises(InputError, match=r"`dvc repro export@kd`"):
        log(project)
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_deleted_experiment_comes_back(project: Path) -> None:
    logged = log(project)
    client().delete_experiment(logged.experiment)
    again = log(project)
    assert again.experiment == logged.experiment
    assert client().get_experiment(again.experiment).lifecycle_stage == "active"


def test_the_embedded_store_is_in_the_project_and_writes_ahead(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (track.EXPERIMENT,)).fetchone()
    assert found == ((store.parent / "mlartifacts").as_uri(),)


def test_tracking_uri_from_outside_wins(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/team.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    logged = log(project)
    assert client().get_experiment(logged.experiment).name == "theirs"
    assert {"mlartifacts", "team.db"} <= {path.name for path in (tmp_path / "other").iterdir()}
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_project_without_dvc_is_this_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    root = Path(track.__file__).parents[1]
    assert (track.project(), track.tracking_uri()) == (root, f"sqlite:///{root}/mlflow.db")


def test_server_down_is_told_soon_and_with_the_way_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: refuses at once
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{taken.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"No model is lost.*`dvc repro track`") as caught:
            log(project)
    assert time.monotonic() - start < 20
    assert "secret" not in str(caught.value)
    assert "MLflow at http://127.0.0.1:" in str(caught.value)
    assert not (project / "reports").exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:secret@host:5000/x?token=1", "http://host:5000/x"),
        ("postgresql://u:p@host/db?password=p", "postgresql://host/db"),
        ("sqlite:////srv/my project/mlflow.db", "sqlite:////srv/my project/mlflow.db"),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert track._shown(uri) == shown


def test_view_link_opens_a_view_that_exists(project: Path) -> None:
    link = track.view_link(5055)
    assert link == track.view_link(5055)
    page, _, query = urlsplit(link).fragment.partition("?")
    asked = parse_qs(query)
    experiment = page.split("/")[2]
    assert urlsplit(link).netloc == "127.0.0.1:5055"
    assert asked["workflowType"] == ["machine_learning"]
    view = json.loads(client().get_experiment(experiment).tags[f"mlflow.sharedViewState.{asked['viewStateShareKey'][0]}"])
    state = json.loads(zlib.decompress(b64decode(view["state"].removeprefix("deflate;"))))
    logged = log(project)
    run = client().get_run(logged.runs["kd"])
    columns = {column.split(".", 1)[0] + ":" + column.split("`")[1] for column in state["selectedColumns"]}
    known = (
        {f"metrics:{key}" for key in run.data.metrics}
        | {f"params:{key}" for key in run.data.params}
        | {f"tags:{key}" for key in run.data.tags}
    )
    assert columns - known <= {"tags:dvc.exp", "tags:git.commit"}  # those depend on where it runs
    client().create_run(experiment, run_name="not a row")
    found = client().search_runs([experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"])
    assert [run.info.run_name for run in found] == ["big", "kd", "fitnet", "alone"]


@pytest.mark.slow
def test_four_processes_on_a_fresh_database(project: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline import track; root = Path(sys.argv[1]); "
        "track.log(root / 'records', runs=['alone', 'kd', 'fitnet'], teachers=['big'], artifacts={}, common=[], out=root / sys.argv[2])"
    )
    (project / "mlflow.db").unlink()
    env = os.environ | {"PYTHONPATH": str(Path(track.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(project)]
    racing = [subprocess.Popen([*command, f"{n}.json"], env=env, stderr=subprocess.PIPE, text=True) for n in range(4)]
    for process in racing:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    told = [json.loads((project / f"{n}.json").read_text()) for n in range(4)]
    assert told == [told[0]] * 4
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (4,)


def test_importing_track_is_cheap() -> None:
    code = (
        "import sys, pipeline.track; print(sorted({'mlflow', 'torch', 'sqlalchemy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(track.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
