"""A project of fabricated records to log from, and ways to look at what was logged."""

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
from pipeline.track import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS, TEACHERS = fabricated.NAMES["runs"], fabricated.NAMES["teachers"]
CODE = Path(store.__file__).parents[2]
OLD_LOADER = "ignore:The ``noload`` loader strategy is deprecated"  # by sqlalchemy 2.1; mlflow 3.17 still uses it
ANY_HINT = "ignore:.*Any type hint is inferred as AnyType"  # mlflow 3.17 of its own classes, when mlflow.pyfunc is imported
# logs what `log` below logs; {change} may break something first
ELSEWHERE = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from pipeline import track
{change}
root = Path(sys.argv[1])
track.log(root / "records", runs=["alone", "kd", "fitnet"], teachers=["big"], artifacts={{}}, common=[], out=root / sys.argv[2])
"""


@cache
def empty_store() -> Path:
    """A database as `track` makes it where there is none; making one takes seconds."""
    root = Path(tempfile.mkdtemp()) / "first project"
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        patch.setenv("DVC_ROOT", str(root))
        track.view_link(5000)
    return root / "mlflow.db"


def clean(patch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME"):
        patch.delenv(name, raising=False)
    for name, value in store.QUIET.items():
        patch.setenv(name, value)


def make_project(root: Path, patch: pytest.MonkeyPatch, *, fresh: bool = False) -> Path:
    """A project seen from another working directory, as a stage in `dvc exp run --temp` sees it; without a database if `fresh`."""
    clean(patch)
    fabricated.fabricate(root / "records")
    for name in RUNS:
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "student.onnx").write_bytes(b"onnx of " + name.encode())
    (root / "report.md").write_text("# Report\n")
    (root / "elsewhere").mkdir()
    patch.chdir(root / "elsewhere")
    patch.setenv("DVC_ROOT", str(root))
    if not fresh:
        with closing(sqlite3.connect(empty_store())) as made, closing(sqlite3.connect(root / "mlflow.db")) as copy:
            made.backup(copy)
            copy.execute("UPDATE experiments SET artifact_location = ?", ((root / "mlartifacts").as_uri(),))
            copy.commit()
    return root


def log(root: Path, *, runs: Sequence[str] = RUNS, analysed: Sequence[str] = ()) -> track.Logged:
    bundles, out = {name: [root / "models" / name] for name in runs}, root / "reports" / "mlflow.json"
    return track.log(
        root / "records", runs=runs, teachers=TEACHERS, artifacts=bundles, common=[root / "report.md"], out=out, analysed=analysed
    )


def start_logging(root: Path, *, out: str = "other.json", change: str = "") -> subprocess.Popen[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-c", ELSEWHERE.format(change=change), str(root), out]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(CODE)}, stderr=subprocess.PIPE, text=True)


def client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(store.tracking_uri())


def logged_rows(logged: track.Logged) -> list[Any]:
    return list(client().search_runs([logged.experiment]))


def content(logged: track.Logged) -> dict[str, Any]:
    """All numbers of all rows: names, steps, values and moments; parameters; when it began and ended."""
    told = {}
    for run in logged_rows(logged):
        points = {
            key: sorted((p.step, p.value, p.timestamp) for p in client().get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        told[run.info.run_name] = (points, run.data.params, run.info.start_time, run.info.end_time)
    return told
