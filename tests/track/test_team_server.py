"""A team's MLflow server: artifacts that go through it, a database behind it, passwords, an object store."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import fabricated
import pytest
import yaml
from servers import PASSWORD, POSTGRES, in_postgres, mlflow, object_store, postgres
from tracked import (
    CODE,
    OLD_LOADER,
    RUNS,
    TEACHERS,
    client,
    content,
    fail_once,
    log,
    logged_rows,
    make_project,
)

from pipeline.settings import InputError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(OLD_LOADER)]
ROWS = ["alone", "big", "fitnet", "kd"]


def is_missing(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) is None for module in modules)


needs_postgres = [
    pytest.mark.skipif(not POSTGRES, reason="there is no PostgreSQL (Debian: apt-get install postgresql)"),
    pytest.mark.skipif(is_missing("psycopg"), reason="there is no driver (pip install 'psycopg[binary]')"),
]
needs_authentication = pytest.mark.skipif(
    is_missing("flask_wtf"), reason="mlflow cannot ask for passwords (pip install 'mlflow[auth]')"
)
needs_object_store = pytest.mark.skipif(
    is_missing("boto3", "moto"), reason="there is no object store (pip install boto3 'moto[s3]')"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path / "my project", monkeypatch, fresh=True)


def start_stage(root: Path) -> "subprocess.Popen[str]":
    """Start the stage itself, as DVC runs it in this project."""
    (root / "params.yaml").write_text(
        yaml.safe_dump({"runs": dict.fromkeys(RUNS), "teachers": dict.fromkeys(TEACHERS)})
    )
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    for folder in ("reports", "plots"):
        (root / folder).mkdir(exist_ok=True)
    for file in ("reports/report.html", "reports/report.md", "plots/curves.csv"):
        (root / file).write_text(file)
    options = [
        "--records",
        "records",
        "--bundles",
        "models",
        "--reports",
        "reports",
        "--plots",
        "plots",
        "--out",
        "reports/mlflow.json",
    ]
    env = os.environ | {"PYTHONPATH": str(CODE), "DVC_ROOT": str(root)}
    command = [sys.executable, "-m", "stages.track", *options]
    return subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def names(rows: list[Any]) -> list[str]:
    assert {run.info.status for run in rows} == {"FINISHED"}
    return sorted(run.info.run_name for run in rows)


def refusal(root: Path) -> str:
    """The message when logging is refused, which must be soon."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        log(root)
    assert time.monotonic() - start < 20
    assert "No model is lost" in str(caught.value)
    return str(caught.value)


# --- one server in front of PostgreSQL ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("server")
    with postgres() as port, mlflow(place, in_postgres(port), str(place / "artifacts")) as address:
        yield address


class TestServer:
    pytestmark = needs_postgres

    def test_two_machines_at_once_write_each_row_once(
        self, server: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One machine logs twice, and the other has a clone of its project: the same records, but no common
        lock."""
        clone = make_project(tmp_path / "clone", monkeypatch, fresh=True)
        monkeypatch.setenv("DVC_ROOT", str(project))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "racing")
        racing = [start_stage(root) for root in (project, project, clone)]
        for process in racing:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        written = json.loads((project / "reports/mlflow.json").read_text())
        assert written["tracking_uri"] == server
        rows = list(client().search_runs([written["experiment"]], "tags.pipeline_key LIKE '%'"))
        assert names(rows) == ROWS
        assert not (project / "mlflow.db").exists()
        assert not (project / "mlartifacts").exists()
        last = start_stage(project)
        assert "0 new of 4 rows" in last.communicate(timeout=300)[0]

    def test_its_rows_are_those_of_the_projects_own_database(
        self, server: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = content(log(project))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        logged = log(project)
        assert logged.new == ["big", "alone", "kd", "fitnet"]
        assert content(logged) == own

    def test_artifacts_go_through_it_and_come_back(
        self, server: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "artifacts")
        run = log(project).runs["kd"]
        place = client().get_run(run).info.artifact_uri
        assert place.startswith("mlflow-artifacts:/")
        found = client().download_artifacts(run, "kd/student.onnx", str(tmp_path))
        assert Path(found).read_bytes() == b"onnx of kd"
        path = place.removeprefix("mlflow-artifacts:/")
        with urlopen(f"{server}/api/2.0/mlflow-artifacts/artifacts/{path}/report.md", timeout=30) as answer:
            assert answer.read() == b"# Report\n"


def test_data_that_another_machine_logs_at_the_same_time(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's server then fails once, because both insert the same entry."""
    from mlflow import MlflowException

    calls = fail_once(monkeypatch, "log_inputs", MlflowException("duplicate key value"), at=1)
    assert names(logged_rows(log(project))) == ROWS
    assert len(calls) == 5


# --- who may write ---


@needs_authentication
def test_a_server_that_asks_for_a_password(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "server"
    settings = {
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any that stays the same",
    }
    with mlflow(
        place,
        f"sqlite:///{place}/mlflow.db",
        str(place / "artifacts"),
        "--app-name",
        "basic-auth",
        env=settings,
    ) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=30)
        assert "MLFLOW_TRACKING_USERNAME" in refusal(project)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a guess of mine")
        message = refusal(project)
        assert "MLFLOW_TRACKING_USERNAME" in message
        assert "guess" not in message
        assert len(message) < 700
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        logged = log(project)
        assert names(logged_rows(logged)) == ROWS
        found = client().download_artifacts(logged.runs["kd"], "kd/student.onnx", str(tmp_path))
        assert Path(found).read_bytes() == b"onnx of kd"
        assert PASSWORD not in (project / "reports" / "mlflow.json").read_text()
        ben = json.dumps({"username": "ben", "password": "reads and no more"}).encode()
        admin = {
            "Authorization": f"Basic {b64encode(f'admin:{PASSWORD}'.encode()).decode()}",
            "Content-Type": "application/json",
        }
        urlopen(Request(f"{address}/api/2.0/mlflow/users/create", ben, admin), timeout=30).close()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ben")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "reads and no more")
        assert log(project).runs == logged.runs
        fabricated.fabricate(project / "records", again=["evaluate/kd"])
        message = refusal(project)
        assert "Permission denied" in message
        assert "no more" not in message


# --- an object store ---


@needs_object_store
def test_artifacts_in_an_object_store(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    place = tmp_path / "server"
    with object_store(tmp_path / "objects") as endpoint:
        keys = {
            "AWS_ACCESS_KEY_ID": "ann",
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with pytest.MonkeyPatch.context() as patch:
            for key, value in keys.items():
                patch.setenv(key, value)
            bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="students")
        settings = keys | {"MLFLOW_S3_ENDPOINT_URL": endpoint}  # only the server knows these
        with mlflow(place, f"sqlite:///{place}/mlflow.db", "s3://students/ours", env=settings) as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            logged = log(project)
            keys_of_objects = {item.key for item in bucket.objects.all()}
            assert (
                sorted(key.rpartition("/")[2] for key in keys_of_objects if key.endswith(".onnx"))
                == ["student.onnx"] * 3
            )
            found = client().download_artifacts(logged.runs["kd"], "kd/student.onnx", str(tmp_path))
            assert Path(found).read_bytes() == b"onnx of kd"
