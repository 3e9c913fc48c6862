"""A project that is moved or copied takes its rows, files and models along."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from track.test_registry import NAME, improve, log_with_bundles, promote, versions
from tracked import ANY_HINT, CODE, OLD_LOADER, clean_environment, client, log, make_project

from pipeline.track import moved, view_link
from pipeline.track.database import open_experiment, tracking_uri

pytestmark = [pytest.mark.filterwarnings(OLD_LOADER), pytest.mark.filterwarnings(ANY_HINT)]
# asks MLflow's server for files as its page does, in a process of its own: the server has one store for good
ASK = """
import sys
from mlflow.server import app, handlers
handlers.initialize_backend_stores(sys.argv[1], sys.argv[1], sys.argv[2])
for address in sys.argv[3:]:
    print(app.test_client().get(address).get_data(as_text=True))
"""


def fingerprint(folder: Path) -> dict[str, str]:
    """The content of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def addresses(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        columns = (f"SELECT {column} FROM {table}" for table, column in moved.ADDRESSES)
        return {value for query in columns for (value,) in connection.execute(query) if value}


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = log_with_bundles(make_project(tmp_path / "first % place", monkeypatch))
    promote(root)
    return root


@pytest.fixture
def copy(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the project from now on."""
    copy = tmp_path / "another" / "place"
    shutil.copytree(original, copy)
    clean_environment(monkeypatch)  # MLflow names its store there for the processes that it starts
    monkeypatch.setenv("DVC_ROOT", str(copy))
    monkeypatch.chdir(copy)
    return copy


def test_a_copy_writes_and_reads_its_own_files_and_leaves_the_original_alone(
    original: Path, copy: Path
) -> None:
    before = fingerprint(original)
    assert log(copy).new == []
    improve(copy, "kd", 0.9)
    done = promote(copy)
    assert (done.run, done.version, done.alias) == ("kd", "2", "champion")
    assert fingerprint(original) == before
    new = log(copy).runs["kd"]
    asked = ["mlflow/artifacts/list?run_id=", "/get-artifact?path=report.md&run_uuid="]
    pages = [f"/ajax-api/2.0/{asked[0]}{new}", f"{asked[1]}{new}", f"{asked[1]}{log(copy).runs['fitnet']}"]
    command = [sys.executable, "-c", ASK, tracking_uri(), str(copy / "mlartifacts"), *pages]
    shutil.rmtree(original)  # whatever is found now lies in the copy
    shown = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=True).stdout
    assert '"report.md"' in shown
    assert shown.count("# Report") == 2
    place = copy.parent / "downloaded"
    place.mkdir()
    for version in versions():
        (place / str(version.version)).mkdir()
        client().download_artifacts(str(version.run_id), "report.md", str(place))
        import mlflow

        uri, found = mlflow.get_tracking_uri(), f"models:/{NAME}/{version.version}"
        mlflow.set_tracking_uri(tracking_uri())
        mlflow.artifacts.download_artifacts(found, dst_path=str(place / str(version.version)))
        mlflow.set_tracking_uri(uri)
        assert (place / str(version.version) / "student.onnx").is_file()


def test_no_address_of_the_original_is_left(original: Path, copy: Path) -> None:
    assert any(original.as_uri() in each for each in addresses(original / "mlflow.db"))
    assert moved.bring_along(copy / "mlflow.db") == [(original / "mlartifacts").as_uri()]
    left = addresses(copy / "mlflow.db")
    assert not any(place in each for each in left for place in (original.as_uri(), str(original)))
    assert (copy / "mlartifacts").as_uri() in left
    assert moved.bring_along(copy / "mlflow.db") == []


def test_every_command_that_opens_the_store_brings_it_along(copy: Path) -> None:
    view_link(5000)  # as `make ui`, before it starts the server
    assert (copy / "mlartifacts").as_uri() in addresses(copy / "mlflow.db")


def test_mlflows_own_experiment_comes_along(copy: Path, original: Path) -> None:
    database = copy / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", (f"{original}/mlruns/0",)
        )
    moved.bring_along(database)
    assert f"{copy}/mlruns/0" in addresses(database)


def test_places_that_a_person_chose_stay(copy: Path) -> None:
    mlflow, _ = open_experiment()
    chosen = ["s3://bucket/mlartifacts", "file:///data/results", "mlflow-artifacts:/7"]
    for place in chosen:
        mlflow.create_experiment(place, artifact_location=place)
    assert moved.bring_along(copy / "mlflow.db") == []
    assert set(chosen) <= addresses(copy / "mlflow.db")


def test_a_folder_with_a_similar_name_stays(copy: Path, original: Path) -> None:
    beside = f"{(original / 'mlartifacts').as_uri()}-old/1"
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE name = 'kd'", (beside,))
    moved.bring_along(copy / "mlflow.db")
    assert beside in addresses(copy / "mlflow.db")


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 1000)
    assert moved.bring_along(tmp_path / "mlflow.db") == []
    assert moved.bring_along(tmp_path / "missing.db") == []
    assert not (tmp_path / "missing.db").exists()
