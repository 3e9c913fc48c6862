import json
import os
import re
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
from tracked import CODE, OLD_LOADER, client, empty_store, log, logged_rows, trainings

from pipeline import track
from pipeline.records.results import load_results
from pipeline.settings import InputError
from pipeline.track import database, measures
from pipeline.track.rows import build_rows, description
from pipeline.track.shown_settings import of_run, of_teacher
from pipeline.track.view import VIEWS

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def history(run: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run, metric)]


def test_a_row_leaves_out_settings_that_do_nothing() -> None:
    method = {"name": "kd", "ce_weight": 0.0, "standardise": False, "path": ""}
    params = {
        "run": {"method": method, "teacher": "big", "seeds": [0], "phases": {"distill": {"steps": 5}}},
        "student": {"net": "resnet8"},
        "protocol": {"shots": 0, "fraction": 1.0, "label_noise": 0.2, "class_overlap": "all", "rest": ""},
        "train": {"epochs": 0, "steps": 9, "class_balance": "sampler", "select": "accuracy", "lr": 0.1},
    }
    assert of_run(params, {"square": "pad", "noise": 0.0}, "resnet14") == {
        "method": "kd",
        "student": "resnet8",
        "teacher": "big",
        "teacher_net": "resnet14",
        "seeds": "[0]",
        "shots": "0",
        "label_noise": "0.2",
        "steps": "9",
        "class_balance": "sampler",
        "lr": "0.1",
        "ce_weight": "0.0",
        "distill.steps": "5",
        "data_square": "pad",
    }


def test_a_row_of_a_teacher_has_its_own_training() -> None:
    teacher = {"net": "resnet14", "train": {"epochs": 3, "lr": 0.1}}
    shown = of_teacher({"teacher": teacher, "augment": {"preset": "light"}}, {"size": 8})
    assert (shown["epochs"], shown["lr"], shown["augment"], shown["data_size"]) == ("3", "0.1", "light", "8")


def test_a_row_has_numbers_curves_settings_hashes_and_artifacts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "tall-larch")
    logged = log(project)
    assert logged.new == ["big", "alone", "kd", "fitnet"]
    run = client().get_run(logged.runs["fitnet"])
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 5 * 90_000  # its own five stages
    metrics = run.data.metrics
    low, high = metrics.pop("accuracy_test_low"), metrics.pop("accuracy_test_high")
    assert (low, high) == pytest.approx((0.7222, 0.8749), abs=1e-4)  # Wilson's, for 81 of 100
    gain = [metrics.pop(f"gain_points{end}") for end in ("", "_low", "_high")]
    assert gain == pytest.approx([8.0, 5.516, 10.484], abs=1e-3)
    assert metrics == pytest.approx(
        {
            "accuracy_test": 0.81,  # of seed 2, which is exported
            "balanced_accuracy_test": 0.71,
            "macro_f1_test": 0.61,
            "calibration_error_test": 0.04,
            "agreement_with_teacher": 0.875,
            "accuracy_test_mean": 0.80,
            "accuracy_test_spread": 0.01,
            "seeds": 3,
            "score_val": 0.83,
            "latency_ms": 0.5,
            "size_mb": 4.75,
            "parameters_millions": 1.234,
            "macs_millions": 177.0,
            "images_per_s": 2000.0,
            "train_images": 20,
            "training_minutes": 3.0,
            "accuracy_val": 0.83,
        }
    )
    below = trainings(run.info.run_id)
    assert set(below) == {f"fitnet seed {seed}" for seed in range(3)}
    last = below["fitnet seed 2"]
    assert history(last.info.run_id, "hint_loss") == [(20, 9.0), (40, 8.0)]
    assert history(last.info.run_id, "accuracy_val") == [(20, 0.5), (40, 0.6), (60, 0.83)]
    assert history(run.info.run_id, "accuracy_val") == [(20, 0.5), (40, 0.6), (60, 0.83)]
    assert (last.data.metrics["accuracy_test"], last.data.params["seed"]) == (0.81, "2")
    assert [below[f"fitnet seed {seed}"].data.tags["exported"] for seed in range(3)] == [
        "false",
        "false",
        "true",
    ]
    assert history(last.info.run_id, "system/images_per_s") == [(20, 20.0), (40, 20.0), (60, 20.0)]
    params = run.data.params
    assert (params["method"], params["term_weight"], params["shots"]) == ("fitnet", "100.0", "5")
    assert (params["data_source"], params["teacher_net"], params["student"], params["seeds"]) == (
        "digits",
        "resnet32x4",
        "resnet8x4",
        "[0, 1, 2]",
    )
    tags = run.data.tags
    assert (tags["kind"], tags["dvc.exp"]) == ("run", "tall-larch")
    assert (tags["accuracy"], tags["gain"]) == ("81.00 [72.2, 87.5]", "+8.0 ± 2.5")
    place = project / "downloaded"
    place.mkdir()
    origin = json.loads(
        Path(client().download_artifacts(run.info.run_id, "origin.json", str(place))).read_text()
    )
    assert origin["hashes"] == {
        "data": "d" * 64,
        "teacher": "b" * 64,
        "student": "5" * 64,
        "bundle": "e" * 64,
        "code": fabricated.CODE["distill"],
    }
    assert origin["environments"]["distill"]["torch"] == "2.15.0"
    assert origin["params"]["prepare"]["data"] == {"source": "digits", "k": 5}
    assert not [key for key in tags if key.startswith(("hash.", "environment."))]
    assert tags["mlflow.source.name"] == "dvc.yaml"
    assert tags["mlflow.user"]
    assert re.fullmatch("[0-9a-f]{40}", tags.get("mlflow.source.git.commit", "0" * 40))
    assert (
        tags["stage.distill"]
        == json.loads((project / "records" / "distill" / "fitnet.json").read_text())["id"]
    )
    assert "| evaluate fitnet |" in tags["mlflow.note.content"]
    assert "Files left out (left_out.csv): duplicate: 3, truncated: 1." in tags["mlflow.note.content"]
    assert tags["left_out"] == "duplicate: 3, truncated: 1"
    assert history(last.info.run_id, "system/cpu_cores") == [(0, 1.5)]
    assert history(last.info.run_id, "system/memory_mb") == [(0, 900.0)]
    assert run.inputs is not None
    data = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    rows = {context: json.loads(str(each.profile))["num_rows"] for context, each in data.items()}
    assert {context: (each.name, rows[context]) for context, each in data.items()} == {
        "training": ("digits", 20),
        "validation": ("digits", 20),
        "testing": ("digits", 100),
    }
    assert data["training"].digest.startswith("a" * 24)
    assert data["testing"].digest.startswith("d" * 24)
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


def test_a_teachers_row_has_its_numbers_and_its_training_below(project: Path) -> None:
    row = log(project).teachers["big"]
    (training,) = trainings(row).values()
    assert training.info.run_name == "big training"
    assert history(training.info.run_id, "accuracy_val") == [(40, 0.9), (80, 0.95)]
    metrics = client().get_run(row).data.metrics
    assert {key: metrics[key] for key in metrics if not key.startswith("accuracy_test_")} == pytest.approx(
        {
            "accuracy_test": 0.96,
            "balanced_accuracy_test": 0.86,
            "macro_f1_test": 0.76,
            "calibration_error_test": 0.04,
            "accuracy_val": 0.95,
            "size_mb": 29.5,
            "parameters_millions": 7.433,
            "training_minutes": 1.5,
        }
    )  # without the latency of PyTorch, and without what rows are sorted by


def test_a_teacher_that_was_measured_as_a_file_has_its_latency(project: Path) -> None:
    for path in (project / "records" / "benchmark").glob("*.json"):
        details = json.loads(path.read_text())["details"]
        fabricated.edit(path, details=details | {"teacher": details["teacher"] | {"file": "onnx"}})
    assert client().get_run(log(project).teachers["big"]).data.metrics["latency_ms"] == 4.25


def test_a_row_has_at_most_thirty_metrics_and_parameters(project: Path) -> None:
    method = {"name": "kd"} | {f"setting_{i}": i for i in range(50)}
    for stage in ("pretrain", "distill"):
        path = project / "records" / stage / "kd.json"
        params = json.loads(path.read_text())["params"]
        fabricated.edit(path, params=params | {"run": params["run"] | {"method": method}})
    fabricated.analyse(project / "records", "kd", transfer_after=0.25)
    run = client().get_run(log(project, analysed=["kd"]).runs["kd"])
    assert len(run.data.params) == 30
    assert (run.data.params["method"], run.data.params["setting_0"]) == ("kd", "0")
    assert len(run.data.metrics) <= 30 == measures.MOST
    assert len(measures.MEANINGS) <= measures.MOST
    assert not [key for key in run.data.metrics if "/" in key]


def test_rows_of_students_have_their_teachers_knowledge(project: Path) -> None:
    before = log(project)
    fabricated.learn(project / "records", "atoms", "kd", "fitnet")
    logged = log(project)
    assert logged.new == ["kd", "fitnet"]
    for name in ("kd", "fitnet"):
        assert history(trainings(logged.runs[name])["atoms training"].info.run_id, "loss") == [
            (20, 0.7),
            (40, 0.6),
        ]
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
    path = project / "records" / "distill" / "kd.json"
    record = json.loads(path.read_text())
    record["params"]["run"]["method"] |= {"odd@key": {"α%": "x" * 7000}, "empty": {}}
    for curve in record["curves"].values():
        curve["note/ratio@5"] = curve["share of kd"] = curve["note/a~b"] = curve["loss"]
    path.write_text(json.dumps(record))
    logged = log(project)
    params = client().get_run(logged.runs["kd"]).data.params
    assert params["odd_key.__"] == "x" * 6000
    assert "empty" not in params
    found = trainings(logged.runs["kd"])["kd seed 0"].data.metrics
    assert (found["note_ratio_5"], found["share_of_kd"]) == (1.5, 1.5)
    assert not [key for key in found if "~" in key or "a_b" in key]  # the record has the matrices


def test_an_analysis_is_in_the_row(project: Path) -> None:
    before = log(project)
    fabricated.analyse(project / "records", "kd", transfer_after=0.25)
    logged = log(project, analysed=["kd"])
    assert logged.new == ["kd"]
    assert logged.runs["fitnet"] == before.runs["fitnet"]
    run = client().get_run(logged.runs["kd"])
    place = project / "downloaded"
    place.mkdir()
    file = client().download_artifacts(run.info.run_id, "records/analyse.json", str(place))
    assert json.loads(Path(file).read_text())["metrics"]["transfer_after"] == 0.25
    assert run.data.tags["cached.distill"] == before.runs["kd"]


def test_a_curve_may_have_more_points_than_one_call_takes(project: Path) -> None:
    path = project / "records" / "distill" / "kd.json"
    n = 1100
    curve = {
        "epoch": [float(i + 1) for i in range(n)],
        "images": [float(20 * (i + 1)) for i in range(n)],
        "loss": [1 / (i + 1) for i in range(n)],
        "seconds": [i / 10 for i in range(n)],
    }
    fabricated.edit(path, curves={"distill/seed-0": curve})
    (training,) = trainings(log(project).runs["kd"]).values()
    assert [value for _, value in history(training.info.run_id, "loss")] == curve["loss"]


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
    assert columns <= known
    assert state["selectedColumns"] == sorted(
        state["selectedColumns"], key=lambda column: (["m", "p", "t"].index(column[0]), column)
    )
    client().create_run(experiment, run_name="not a row")
    found = client().search_runs(
        [experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"]
    )
    # the best on validation first, teachers last, without the trainings below them
    assert [run.info.run_name for run in found] == ["fitnet", "kd", "alone", "big"]
    assert client().get_experiment(experiment).tags["mlflow.note.content"].startswith("Small students")


def test_charts_open_on_accuracy_by_latency_on_curves_and_on_what_differs(project: Path) -> None:
    logged = log(project)
    row, training = (
        client().get_run(logged.runs["kd"]).data.metrics,
        trainings(logged.runs["kd"])["kd seed 0"].data.metrics,
    )
    scatter, line, differences = VIEWS["students"]["compareRunCharts"]
    assert (scatter["type"], differences["type"]) == ("SCATTER", "DIFFERENCE")
    assert {scatter["xaxis"]["key"], scatter["yaxis"]["key"]} <= row.keys()
    assert line["metricKey"] in row.keys() & training.keys()
    assert differences["showDifferencesOnly"]
    sections = {section["uuid"] for section in VIEWS["students"]["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in VIEWS["students"]["compareRunCharts"]} <= sections


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
    assert "accuracy_test_spread" not in row.headline
    assert "standard deviation" not in description(row, {})
