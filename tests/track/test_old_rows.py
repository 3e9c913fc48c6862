"""Rows and versions that were logged with other names: rows stay in the list, and versions comparable."""

from pathlib import Path

import pytest
from fabricated import NAMES
from track.test_registry import NAME, promote, write_bundle
from tracked import ANY_HINT, OLD_LOADER, RUNS, client, log

from pipeline.records.results import load_results
from pipeline.track.database import open_experiment, tracking_uri
from pipeline.track.rows import build_rows
from pipeline.track.view import VIEWS

pytestmark = [pytest.mark.filterwarnings(OLD_LOADER), pytest.mark.filterwarnings(ANY_HINT)]

# what the last version with schema 1 logged for run fitnet of the fabricated records
STAGES = {
    "stage.prepare": "eae6a602af41741e2d75ded2c63a2ec6",
    "stage.teacher": "272d1fc2e12a11a41b678f67925c8e8b",
    "stage.pretrain": "84b5ff75b4e3ecd947bd83353433486b",
    "stage.distill": "017e8a411b636c82c758b7f3500cf4e0",
    "stage.evaluate": "58f2c47e6600f0f50b1192100e18833d",
    "stage.export": "86ccf9c348481e56faaaf98f776782cc",
    "stage.benchmark": "1e50c5c31e9ba1b501224091e186feaa",
}
HASHES = {
    "hash.data": "d" * 64,
    "hash.teacher": "b" * 64,
    "hash.student": "5" * 64,
    "hash.bundle": "239bbb6ab9517e2f98f369fe4eb5b9ce4d1aade56cc6ce079666ad50ba99dc87",
}
ROW_TAGS = {
    "kind": "run",
    "pipeline_key": "98518bd07ea6436b1683f582514926f1",
    **HASHES,
    **STAGES,
    "environment.python": "3.11.7",
    "environment.torch": "2.15.0",
    "environment.device": "cpu",
    "writer": "160f57f955c5a776",
    "cached.prepare": "cf043641cd834c61a9966a9856feea3e",
    "cached.teacher": "cf043641cd834c61a9966a9856feea3e",
    "mlflow.note.content": "The student of run **fitnet**",
    "mlflow.runName": "fitnet",
}
METRICS = {
    "best/by_val": 0.83,
    "best/top1": 0.8,
    "best/spread": 0.01,
    "best/gain": 0.08,
    "best/latency_ms": 0.5,
    "best/size_mb": 4.75,
    "best/params_m": 1.234,
    "benchmark/latency_ms": 0.5,
    "benchmark/throughput": 2000.0,
    "benchmark/size_mb": 4.75,
    "benchmark/parameters_m": 1.234,
    "benchmark/macs_m": 177.0,
    "evaluate/accuracy": 0.8,
    "evaluate/spread": 0.01,
    "evaluate/n": 3.0,
    "evaluate/ece": 0.04,
    "evaluate/agreement": 0.875,
    "distill/val_accuracy": 0.83,
    "teacher/val_accuracy": 0.95,
    "prepare/images": 160.0,
    **{f"hint/seed-{seed}/{column}": 2.0 for seed in range(3) for column in ("seconds", "loss")},
    **{
        f"distill/seed-{seed}/{column}": 0.83
        for seed in range(3)
        for column in ("val_accuracy", "seconds", "loss")
    },
}
PARAMS = {
    "data.source": "digits",
    "data.k": "5",
    "teacher.net": "resnet32x4",
    "train.epochs": "2",
    "run.teacher": "big",
    "run.student": "small",
    "run.method.name": "fitnet",
    "run.method.term_weight": "100.0",
    "run.seeds": "[0, 1, 2]",
    "student.net": "resnet8x4",
    "protocol.shots": "5",
}
VERSION_TAGS = {
    "run": "fitnet",
    "method": "fitnet",
    "teacher": "big",
    "net": "resnet8x4",
    "formats": "onnx",
    "by_val": "0.83000",
    "top1": "0.80000",
    "spread": "0.01000",
    "gain": "0.08000",
    "latency_ms": "0.50000",
    "size_mb": "4.75000",
    "params_m": "1.23400",
    "row": "b9e95eb4218346f4a8bac22bbf2bcff2",
    "bundle": "07d9d63a53427a2775d1d51e4548eac8f63ce7853169811f9d4a2137c8208ecc",
    "exported_seed": "2",
    **HASHES,
    **STAGES,
    "classes": '["ant", "bee", "cat", "dog", "elk"]',
}


@pytest.fixture
def project(project: Path) -> Path:
    """With a bundle of each run."""
    for name in RUNS:
        write_bundle(project, name)
    return project


def write_old_row(**changes: float) -> str:
    """A row of other executions than those of the fabricated records."""
    from mlflow.entities import Metric, Param

    mlflow, experiment = open_experiment()
    tags = ROW_TAGS | {"pipeline_key": "of other records"}
    row = mlflow.create_run(experiment, tags=tags, run_name="fitnet").info.run_id
    metrics = [Metric(key, value, 0, 0) for key, value in (METRICS | changes).items()]
    mlflow.log_batch(row, metrics, [Param(key, value) for key, value in PARAMS.items()])
    mlflow.set_terminated(row, "FINISHED")
    return str(row)


def write_old_champion(**changes: str) -> None:
    """A version of the model, as `promote` registered it then, with another bundle than those of now."""
    from mlflow import set_tracking_uri

    set_tracking_uri(tracking_uri())
    mlflow, experiment = open_experiment()
    row = write_old_row()
    tags = VERSION_TAGS | {"row": row, "bundle": "f" * 64} | changes
    logged = mlflow.create_logged_model(
        experiment, name="fitnet", source_run_id=row, tags=tags, model_type="student"
    )
    mlflow.finalize_logged_model(logged.model_id, "READY")
    mlflow.create_registered_model(NAME)
    source = f"models:/{logged.model_id}"
    version = mlflow.create_model_version(NAME, source, row, tags=tags, model_id=logged.model_id)
    mlflow.set_registered_model_alias(NAME, "champion", version.version)


def test_an_old_row_is_listed_among_the_others_with_the_names_of_today(project: Path) -> None:
    old = write_old_row(**{"best/by_val": 0.8})
    before = client().get_run(old).to_dictionary()["data"]
    experiment = log(project).experiment
    view = VIEWS["students"]
    listed = client().search_runs([experiment], view["searchFilter"], order_by=[f"{view['orderByKey']} DESC"])
    rows = [run for run in listed if run.data.tags["kind"] != "seed" and run.data.tags["kind"] != "training"]
    assert [run.info.run_name for run in rows] == ["fitnet", "fitnet", "kd", "alone", "big"]
    assert rows[1].info.run_id == old
    data = rows[1].data
    assert before["metrics"].items() <= data.metrics.items()
    new = {key: data.metrics[key] for key in data.metrics.keys() - before["metrics"].keys()}
    assert new == pytest.approx(
        {
            "score_val": 0.8,
            "accuracy_test_mean": 0.8,
            "accuracy_test_spread": 0.01,
            "gain_points": 8.0,
            "latency_ms": 0.5,
            "size_mb": 4.75,
            "parameters_millions": 1.234,
        }
    )
    names = ("method", "student", "teacher")
    assert tuple(data.params[name] for name in names) == ("fitnet", "resnet8x4", "big")
    log(project)  # once more
    assert len(client().get_metric_history(old, "gain_points")) == 1


def test_a_row_of_the_same_executions_is_written_again(project: Path) -> None:
    """With its new names and the trainings below it; the old one is in the bin."""
    old = write_old_row()
    (key,) = {
        row.key for row in build_rows(load_results(project / "records", **NAMES)) if row.name == "fitnet"
    }
    client().set_tag(old, "pipeline_key", key)
    logged = log(project)
    assert logged.new == ["big", "alone", "kd", "fitnet"]
    assert client().get_run(old).info.lifecycle_stage == "deleted"
    assert client().get_run(logged.runs["fitnet"]).data.metrics["accuracy_test"] == 0.81
    assert log(project).new == []


@pytest.mark.parametrize(
    ("champion", "alias", "why"),
    [
        ({"by_val": "0.82000"}, "champion", "83.00% on validation, better than the 82.00% of version 1"),
        ({}, "challenger", "83.00% on validation, not better than the 83.00% of version 1"),
        ({"hash.data": "c" * 64}, "challenger", "the champion, version 1, was measured on other data"),
    ],
)
def test_promote_compares_with_an_old_champion(
    project: Path, champion: dict[str, str], alias: str, why: str
) -> None:
    write_old_champion(**champion)
    log(project)
    done = promote(project)
    assert (done.run, done.version, done.alias, done.new) == ("fitnet", "2", alias, True)
    assert done.why.startswith(why)
