"""Where the rows are kept, and how to open it without harm: several processes at once, a server that is down, credentials."""

import gc
import hashlib
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.inputs import InputError
from pipeline.locks import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "folder-to-student"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's own 7 a server that is down costs four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def project() -> Path:
    """The main checkout, also inside the temporary folder of `dvc exp run --temp`, whatever the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path(__file__).resolve().parents[2])


def writer() -> str:
    """This project on this machine, by no name of either: whoever holds its locks."""
    return hashlib.sha256(f"{socket.gethostname()}:{project()}".encode()).hexdigest()[:16]


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project() / 'mlflow.db'}"


@contextmanager
def reachable() -> Iterator[None]:
    """What goes wrong with the store is told with the way out: nothing trained depends on it."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    with _uncollected():
        from mlflow import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # a database's driver may not be installed
        reason = _without_credentials_inside(str(error).replace(tracking_uri(), shown(tracking_uri()))).partition("\n")[0][:300]
        unknown = getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        check = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if unknown else "MLFLOW_TRACKING_URI and the server"
        raise InputError(
            f"MLflow at {shown(tracking_uri())} can't be used: {reason} No model is lost: models, records and report are in the project. "
            f"Check {check}; then `make track` logs what is missing."
        ) from error


def opened() -> "tuple[MlflowClient, str]":
    """A client and our experiment, which is made where it is missing; on a fresh database by one process at a time."""
    uri, name = tracking_uri(), os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    kind = urlsplit(uri).scheme.partition("+")[0]
    if kind not in DATABASES:
        return _connect(uri, name, None)  # a server knows best where its artifacts go
    if kind != "sqlite":
        _ask(uri)
        with locked(project() / ".work" / "mlflow.lock"):
            return _connect(uri, name, (project() / "mlartifacts").as_uri())
    database = Path(uri.partition(":///")[2].partition("?")[0])
    if _initialised(database, name):
        return _connect(uri, name, None)
    building = database.with_name(f"{database.name}.building")
    with locked(database.with_name(f"{database.name}.lock")):
        if building.exists():  # who made it was killed on the way, and MLflow can't go on from half of its tables
            database.unlink(missing_ok=True)
        if not database.exists():
            building.touch()
        made = _connect(uri, name, (database.absolute().parent / "mlartifacts").as_uri())
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays; readers and the UI no longer wait for a writer
        building.unlink(missing_ok=True)
    return made


def _ask(uri: str) -> None:
    """Raises at once where a database doesn't answer; MLflow would go on asking for minutes."""
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _initialised(database: Path, name: str) -> bool:
    """Asked of sqlite itself: MLflow takes seconds to open, too long to hold a lock every time."""
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(database)) as connection:
            found = connection.execute("SELECT 1 FROM experiments WHERE name = ? AND lifecycle_stage = 'active'", (name,))
            return found.fetchone() is not None
    except sqlite3.DatabaseError:
        return False


def _connect(uri: str, name: str, artifacts: str | None) -> "tuple[MlflowClient, str]":
    from mlflow import MlflowClient, MlflowException

    with _uncollected():  # it imports the whole of its own store
        client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client, client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another machine was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return client, experiment.experiment_id


@contextmanager
def _uncollected() -> Iterator[None]:
    """For MLflow's imports: they make what stays, and Python would look for garbage among it again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def writing() -> "Iterator[tuple[MlflowClient, str]]":
    """A client and our experiment, for one process of this project at a time: two would both miss what neither has written yet."""
    with reachable():
        client, experiment = opened()
        with locked(project() / ".work" / "track.lock"):
            yield client, experiment


def shown(uri: str) -> str:
    """The store as it may be written down: relative to the project where it lies inside, and without credentials."""
    inside = f"sqlite:///{project()}/"
    return f"sqlite:///{uri.removeprefix(inside)}" if uri.startswith(inside) else without_credentials(uri)


def without_credentials(uri: str) -> str:
    return _without_credentials_inside(uri).partition("?")[0]


def _without_credentials_inside(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
