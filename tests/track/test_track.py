import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zlib
from base64 import b64decode
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fabricated
import pytest
from tracked import CODE, OLD_LOADER, client, empty_store, log, logged_rows, make_project

from pipeline import track
from pipeline.records.results import RUN_STAGES, load_results
from pipeline.settings import InputError
from pipeline.track import database
from pipeline.track.rows import build_rows, description

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path / "my project", monkeypatch)


def history(run: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run, metric)]


def test_a_row_has_numbers_curves_settings_hashes_and_artifacts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "tall-larch")
    logged = log(project)
    assert logged.new == ["big", "alone", "kd", "fitnet"]
    run = client().get_run(logged.runs["fitnet"])
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 5 * 90_000  # its own five stages
    assert {
        key: value for key, value in run.data.metrics.items() if key.startswith("best/")
    } == pytest.approx(
        {
            "best/by_val": 0.83,
            "best/top1": 0.80,
            "best/balanced_accuracy": 0.70,
            "best/macro_f1": 0.60,
            "best/spread": 0.01,
            "best/gain": 0.08,
            "best/latency_ms": 0.5,
            "best/size_mb": 4.75,
            "best/params_m": 1.234,
        }
    )
    assert run.data.metrics["evaluate/accuracy"] == pytest.approx(0.80)
    assert run.data.metrics["benchmark/macs_m"] == 177.0
    assert history(run.info.run_id, "hint/seed-1/loss") == [(1, 9.0), (2, 8.0)]
    assert history(run.info.run_id, "distill/seed-2/val_accuracy") == [(1, 0.5), (2, 0.6), (3, 0.83)]
    params = run.data.params
    assert (params["run.method.name"], params["run.method.term_weight"], params["protocol.shots"]) == (
        "fitnet",
        "100.0",
        "5",
    )
    assert (params["data.source"], params["teacher.net"], params["run.seeds"]) == (
        "digits",
        "resnet32x4",
        "[0, 1, 2]",
    )
    tags = run.data.tags
    assert (tags["kind"], tags["dvc.exp"]) == ("run", "tall-larch")
    hashes = {key.removeprefix("hash."): value for key, value in tags.items() if key.startswith("hash.")}
    assert hashes == {
        "data": "d" * 64,
        "teacher": "b" * 64,
        "student": "5" * 64,
        "bundle": "e" * 64,
        "code": fabricated.CODE["distill"],
    }
    assert (
        tags["stage.distill"]
        == json.loads((project / "records" / "distill" / "fitnet.json").read_text())["id"]
    )
    assert tags["environment.torch"] == "2.15.0"
    assert "| evaluate fitnet |" in tags["mlflow.note.content"]
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "d" * 32)
    found = {
        file.path
        for folder in ("", "fitnet", "records")
        for file in client().list_artifacts(run.info.run_id, folder)
    }
    assert {"report.md", "fitnet/student.onnx", "records/distill.json", "records/teacher.json"} <= found
    written = json.loads((project / "reports" / "mlflow.json").read_text())
    assert written == {
        "tracking_uri": "sqlite:///mlflow.db",
        "experiment": logged.experiment,
        "runs": logged.runs,
        "teachers": logged.teachers,
    }
    assert list((project / "elsewhere").iterdir()) == []
    assert Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " ")).is_relative_to(
        project / "mlartifacts"
    )


def test_a_teachers_row_keeps_its_curve_and_its_final_number_apart(project: Path) -> None:
    run = log(project).teachers["big"]
    assert history(run, "teacher/epochs/val_accuracy") == [(1, 0.9), (2, 0.95)]
    assert history(run, "teacher/val_accuracy") == [(0, 0.95)]
    best = {
        key: value for key, value in client().get_run(run).data.metrics.items() if key.startswith("best/")
    }
    assert best == pytest.approx(
        {
            "best/top1": 0.96,
            "best/balanced_accuracy": 0.86,
            "best/macro_f1": 0.76,
            "best/size_mb": 29.5,
            "best/params_m": 7.433,
        }
    )


def test_rows_of_students_have_their_teachers_knowledge(project: Path) -> None:
    before = log(project)
    fabricated.learn(project / "records", "atoms", "kd", "fitnet")
    logged = log(project)
    assert logged.new == ["kd", "fitnet"]
    for name in ("kd", "fitnet"):
        assert history(logged.runs[name], "dictionary/seed-0/loss") == [(1, 0.7), (2, 0.6)]
        run = client().get_run(logged.runs[name])
        assert run.info.end_time - run.info.start_time == 5 * 90_000  # its own stages only
        assert "| knowledge atoms |" in run.data.tags["mlflow.note.content"]
    assert logged.runs["alone"] == before.runs["alone"]


def test_to_log_twice_makes_one_row_and_only_what_ran_again_is_new(project: Path) -> None:
    first = log(project)
    second = log(project)
    assert second.new == []
    assert (second.runs, second.teachers) == (first.runs, first.teachers)
    assert len(logged_rows(second)) == 4
    fabricated.fabricate(project / "records", again=["evaluate/kd"])
    third = log(project)
    assert third.new == ["kd"]
    assert third.runs["kd"] != first.runs["kd"]
    assert third.runs["fitnet"] == first.runs["fitnet"]
    # all gains are over `alone`, so its new numbers make new rows of the runs that are compared with it
    fabricated.fabricate(project / "records", again=["evaluate/kd", "evaluate/alone"])
    assert log(project).new == ["alone", "kd", "fitnet"]


def test_records_of_runs_that_were_removed_are_not_read(project: Path) -> None:
    (project / "records" / "distill" / "fitnet.json").write_text("torn")
    logged = log(project, runs=["alone", "kd"])
    assert set(logged.runs) == {"alone", "kd"}
    assert {run.info.run_name for run in logged_rows(logged)} == {"big", "alone", "kd"}


def test_names_and_values_that_mlflow_refuses_are_changed(project: Path) -> None:
    for stage in RUN_STAGES:
        path = project / "records" / stage / "kd.json"
        values = json.loads(path.read_text())
        values["metrics"] |= {"ratio@5": 0.25}
        values["params"] |= {"odd@key": {"α%": "x" * 7000}, "empty": {}}
        path.write_text(json.dumps(values))
    run = client().get_run(log(project).runs["kd"])
    assert run.data.metrics["distill/ratio_5"] == 0.25
    assert run.data.params["odd_key.__"] == "x" * 6000
    assert run.data.params["empty"] == "{}"


def test_an_analysis_is_in_the_row(project: Path) -> None:
    before = log(project)
    fabricated.analyse(project / "records", "kd", transfer_after=0.25)
    logged = log(project, analysed=["kd"])
    assert logged.new == ["kd"]
    assert logged.runs["fitnet"] == before.runs["fitnet"]
    run = client().get_run(logged.runs["kd"])
    assert run.data.metrics["analyse/transfer_after"] == 0.25
    assert run.data.tags["cached.distill"] == before.runs["kd"]


def test_a_setting_that_two_stages_read_differently_is_logged_twice(project: Path) -> None:
    fabricated.edit(project / "records" / "evaluate" / "kd.json", params={"run": {"seeds": [7]}})
    run = client().get_run(log(project).runs["kd"])
    assert (run.data.params["run.seeds"], run.data.params["evaluate.run.seeds"]) == ("[0, 1, 2]", "[7]")


def test_a_curve_may_have_more_points_than_one_call_takes(project: Path) -> None:
    path = project / "records" / "distill" / "kd.json"
    n = 1100
    curve = {
        "epoch": [float(i + 1) for i in range(n)],
        "loss": [1 / (i + 1) for i in range(n)],
        "seconds": [i / 10 for i in range(n)],
    }
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


def test_a_deleted_experiment_is_restored(project: Path) -> None:
    logged = log(project)
    client().delete_experiment(logged.experiment)
    again = log(project)
    assert again.experiment == logged.experiment
    assert client().get_experiment(again.experiment).lifecycle_stage == "active"


def test_the_projects_database_writes_ahead_and_keeps_artifacts_beside_it() -> None:
    with closing(sqlite3.connect(empty_store())) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (database.EXPERIMENT,)
        ).fetchone()
    assert found == ((empty_store().parent / "mlartifacts").as_uri(),)


def test_the_environment_may_name_another_database(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/team.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    logged = log(project)
    assert client().get_experiment(logged.experiment).name == "theirs"
    assert {"mlartifacts", "team.db"} <= {path.name for path in (tmp_path / "other").iterdir()}
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_without_dvc_the_project_is_the_folder_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (database.project_folder(), database.tracking_uri()) == (
        tmp_path,
        f"sqlite:///{tmp_path}/mlflow.db",
    )


def test_the_link_opens_a_view_of_all_rows_best_first(project: Path) -> None:
    link = track.view_link(5055)
    assert link == track.view_link(5055)
    page, _, query = urlsplit(link).fragment.partition("?")
    options = parse_qs(query)
    experiment = page.split("/")[2]
    assert urlsplit(link).netloc == "127.0.0.1:5055"
    assert options["workflowType"] == ["machine_learning"]
    view = json.loads(
        client().get_experiment(experiment).tags[f"mlflow.sharedViewState.{options['viewStateShareKey'][0]}"]
    )
    assert isinstance(view["createdAt"], int)  # else MLflow's page shows no columns
    state = json.loads(zlib.decompress(b64decode(view["state"].removeprefix("deflate;"))))
    logged = log(project)
    run = client().get_run(logged.runs["kd"])
    columns = {column.split(".", 1)[0] + ":" + column.split("`")[1] for column in state["selectedColumns"]}
    known = (
        {f"metrics:{key}" for key in run.data.metrics}
        | {f"params:{key}" for key in run.data.params}
        | {f"tags:{key}" for key in run.data.tags}
    )
    assert columns - known <= {"tags:dvc.exp"}  # only an experiment has it
    assert state["selectedColumns"] == sorted(
        state["selectedColumns"], key=lambda column: (["m", "p", "t"].index(column[0]), column)
    )
    client().create_run(experiment, run_name="not a row")
    found = client().search_runs(
        [experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"]
    )
    assert [run.info.run_name for run in found] == [
        "fitnet",
        "kd",
        "alone",
        "big",
    ]  # the best on validation first, teachers last


def test_importing_track_is_cheap() -> None:
    slow = {"mlflow", "torch", "sqlalchemy", "pandas", "scipy", "matplotlib"}
    code = f"import sys, pipeline.track; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("spread", [{}, {"spread": 0.0}])  # without, and as records said it once
def test_a_row_of_one_seed_says_nothing_of_a_spread(spread: dict[str, float], tmp_path: Path) -> None:
    right = {name: scores[:1] for name, scores in fabricated.RIGHT.items()}
    records = fabricated.fabricate(tmp_path / "records", right=right)
    file = records / "evaluate/kd.json"
    fabricated.edit(file, metrics=json.loads(file.read_text())["metrics"] | spread)
    row = next(row for row in build_rows(load_results(records, **fabricated.NAMES)) if row.name == "kd")
    assert "spread" not in row.headline
    assert "standard deviation" not in description(row, {})
