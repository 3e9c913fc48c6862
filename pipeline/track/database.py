"""Where the rows are kept, opened safely: several processes, servers that are down, passwords."""

import gc
import hashlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import locked
from pipeline.settings import InputError
from pipeline.track import address, moved

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "folder-to-student"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's 7, a server that is down costs four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def project_folder() -> Path:
    """The main checkout, also while `dvc exp run --temp` works in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def writer_id() -> str:
    """A hash for this project on this machine: all processes with the same id share their locks."""
    return hashlib.sha256(f"{socket.gethostname()}:{project_folder()}".encode()).hexdigest()[:16]


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the database in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_folder() / 'mlflow.db'}"


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors of MLflow and its database into an InputError that says what to do."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    with _no_garbage_collection():
        from mlflow import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except InputError:
        raise
    # ImportError: the driver of a database may not be installed. ValueError: the address cannot be read
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError) as error:
        refused = getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        check = variables if refused else "MLFLOW_TRACKING_URI and the server"
        raise InputError(
            f"MLflow at {public_uri(tracking_uri())} cannot be used: {_first_line(error)} No model is lost: "
            f"models, records and report are in the project. Check {check}. "
            f"{address.hint(tracking_uri())}Then run `handdown track` (in a clone `make track`): it "
            "logs what is missing."
        ) from None  # the error itself may quote the password


def _first_line(error: Exception) -> str:
    """The beginning of an error's message, without credentials."""
    return address.clean(str(error), tracking_uri()).partition("\n")[0][:300]


def open_experiment() -> "tuple[MlflowClient, str]":
    """A client, and the id of our experiment, which is made if it is missing.

    A fresh database is set up by one process at a time.
    """
    uri, name = tracking_uri(), os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    kind = address.kind(uri)
    if kind not in DATABASES:
        return _connect(uri, name, None)  # a server decides itself where its artifacts go
    if kind == "sqlite":
        return _open_sqlite(uri, name)
    _check_connection(uri)
    with locked(project_folder() / ".work" / "mlflow.lock"):
        return _connect(uri, name, (project_folder() / moved.FOLDER).as_uri())


def _open_sqlite(uri: str, name: str) -> "tuple[MlflowClient, str]":
    database = Path(uri.partition(":///")[2].partition("?")[0])
    moved.bring_along(database)
    if _has_experiment(database, name):
        return _connect(uri, name, None)
    building = database.with_name(f"{database.name}.building")
    with locked(moved.lock_of(database)):
        if building.exists():
            # the process that built it was killed, and MLflow cannot use a database with half of its tables
            database.unlink(missing_ok=True)
        if not database.exists():
            building.touch()
        opened = _connect(uri, name, moved.beside(database))
        with closing(sqlite3.connect(database)) as connection:
            # a lasting setting, with which the UI and other readers do not wait for a writer
            connection.execute("PRAGMA journal_mode=WAL")
        building.unlink(missing_ok=True)
    return opened


def _check_connection(uri: str) -> None:
    """Raise at once if a database does not answer; MLflow would try again for minutes."""
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _has_experiment(database: Path, name: str) -> bool:
    """This reads SQLite itself: MLflow takes seconds to open it, too long to hold a lock each time."""
    if not database.exists():
        return False
    query = "SELECT 1 FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute(query, (name,)).fetchone() is not None
    except sqlite3.DatabaseError:
        return False


def _connect(uri: str, name: str, artifacts: str | None) -> "tuple[MlflowClient, str]":
    from mlflow import MlflowClient, MlflowException

    with _no_garbage_collection():  # the client imports all code of its store
        client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client, client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another machine made it in the meantime
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return client, experiment.experiment_id


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For MLflow's imports: they create many lasting objects, among which Python would search for garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def open_for_writing() -> "Iterator[tuple[MlflowClient, str]]":
    """As `open_experiment`, for one process of this project at a time: two would write the same row twice."""
    with explained_errors():
        client, experiment = open_experiment()
        with locked(project_folder() / ".work" / "track.lock"):
            yield client, experiment


def public_uri(uri: str) -> str:
    """The URI as it may be printed: without credentials, and relative if it lies inside the project."""
    inside = f"sqlite:///{project_folder()}/"
    return f"sqlite:///{uri.removeprefix(inside)}" if uri.startswith(inside) else address.public(uri)
