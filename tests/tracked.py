"""A project with fabricated records to log, and functions that read what was logged."""

import atexit
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fabricated
import pytest

from pipeline import track
from pipeline.track import database
from pipeline.track.write_rows import Logged, write_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS, TEACHERS = fabricated.NAMES["runs"], fabricated.NAMES["teachers"]
CODE = Path(database.__file__).parents[2]
# sqlalchemy 2.1 warns of what mlflow 3.17 still uses
OLD_LOADER = "ignore:The ``noload`` loader strategy is deprecated"
# mlflow 3.17 warns of its own classes when mlflow.pyfunc is imported
ANY_HINT = "ignore:.*Any type hint is inferred as AnyType"
# logs what `log` below logs, without artifacts; {change} may break something first
LOG_IN_A_PROCESS = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from pipeline.track.write_rows import write_rows
{change}
root = Path(sys.argv[1])
names = dict(runs=["alone", "kd", "fitnet"], teachers=["big"])
write_rows(root / "records", **names, artifacts={{}}, common=[], out=root / sys.argv[2])
"""


@cache
def empty_store() -> Path:
    """A database as `track` makes it where there is none. To make one takes seconds."""
    root = Path(tempfile.mkdtemp()) / "first project"
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        patch.setenv("DVC_ROOT", str(root))
        track.view_link(5000)
    return root / "mlflow.db"


def clean_environment(patch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME"):
        patch.delenv(name, raising=False)
    for name, value in database.QUIET.items():
        patch.setenv(name, value)


def make_project(root: Path, patch: pytest.MonkeyPatch, *, fresh: bool = False) -> Path:
    """A project, while another folder is the working directory, as for a stage in `dvc exp run --temp`.

    With `fresh` it has no database yet.
    """
    clean_environment(patch)
    fabricated.fabricate(root / "records")
    for name in RUNS:
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "student.onnx").write_bytes(b"onnx of " + name.encode())
    (root / "report.md").write_text("# Report\n")
    (root / "elsewhere").mkdir()
    patch.chdir(root / "elsewhere")
    patch.setenv("DVC_ROOT", str(root))
    if not fresh:
        with (
            closing(sqlite3.connect(empty_store())) as source,
            closing(sqlite3.connect(root / "mlflow.db")) as copy,
        ):
            source.backup(copy)
            copy.execute("UPDATE experiments SET artifact_location = ?", ((root / "mlartifacts").as_uri(),))
            copy.commit()
    return root


def log(root: Path, *, runs: Sequence[str] = RUNS, analysed: Sequence[str] = ()) -> Logged:
    return write_rows(
        root / "records",
        runs=runs,
        teachers=TEACHERS,
        artifacts={name: [root / "models" / name] for name in runs},
        common=[root / "report.md"],
        out=root / "reports" / "mlflow.json",
        analysed=analysed,
    )


def start_logging(root: Path, *, out: str = "other.json", change: str = "") -> subprocess.Popen[str]:
    """Log in another process."""
    command = [sys.executable, "-c", LOG_IN_A_PROCESS.format(change=change), str(root), out]
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(database.tracking_uri())


def fail_once(patch: pytest.MonkeyPatch, method: str, error: Exception, *, at: int) -> list[int]:
    """Let a method of MLflow's client fail at this call. The numbers of all calls are in the list."""
    from mlflow import MlflowClient

    real, calls = getattr(MlflowClient, method), list[int]()

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] == at:
            raise error
        return real(*args, **kwargs)

    patch.setattr(MlflowClient, method, fails)
    return calls


def logged_rows(logged: Logged) -> list[Any]:
    return list(client().search_runs([logged.experiment], "tags.pipeline_key LIKE '%'"))


def trainings(row: str) -> dict[str, Any]:
    """The runs below a row, by name."""
    experiment = client().get_run(row).info.experiment_id
    found = client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{row}'")
    return {run.info.run_name: run for run in found}


def content(logged: Logged) -> dict[str, Any]:
    """By name of the row: all points of all metrics, the parameters, and when the run began and ended."""
    rows = {}
    for run in client().search_runs([logged.experiment]):
        points = {
            key: sorted(
                (p.step, p.value, p.timestamp) for p in client().get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        rows[run.info.run_name] = (points, run.data.params, run.info.start_time, run.info.end_time)
    return rows
