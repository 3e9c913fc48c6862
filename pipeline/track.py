"""The records of a finished graph as rows of MLflow: a view to compare in, which can always be built again."""

import base64
import fcntl
import hashlib
import json
import math
import os
import re
import sqlite3
import subprocess
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline import report
from pipeline.checkpoint import atomic_file
from pipeline.inputs import InputError
from pipeline.record import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.evaluate import Gain

EXPERIMENT = "folder-to-student"
VIEW = "students"
COLUMNS = [
    *(f"metrics.`best/{name}`" for name in ("top1", "spread", "gain", "latency_ms", "size_mb", "params_m")),
    *(f"params.`{name}`" for name in ("run.teacher", "student.net", "run.method.name")),
    *(f"tags.`{name}`" for name in ("kind", "dvc.exp", "git.commit")),
]
CODE = ["*.py", "params.yaml", "dvc.yaml", "requirements.lock"]  # what makes a working tree dirty; the results beside it don't
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's own 7 a server that is down costs four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Row:
    """What becomes one MLflow run: a student or a teacher, with everything known of it."""

    kind: str
    name: str
    shared: list[Record]  # of the stages that other rows rest on too: prepare, and a student's teacher
    own: list[Record]  # of the stages that worked for this row alone, in the order of the graph
    headline: dict[str, float]
    versus: list[str]  # ids of further records that the headline depends on
    artifacts: Sequence[Path]

    @property
    def records(self) -> list[Record]:
        return [*self.shared, *self.own]

    @property
    def key(self) -> str:
        """The same executions give the same row, whenever and wherever it is logged."""
        ids = [self.kind, self.name, *(record.id for record in self.records), *self.versus]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Logged:
    """Where the rows are; `new` are those that weren't there before."""

    tracking_uri: str
    experiment: str
    runs: dict[str, str]
    teachers: dict[str, str]
    new: list[str]


def log(
    records: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    artifacts: Mapping[str, Sequence[Path]],
    common: Sequence[Path],
    out: Path,
) -> Logged:
    """One row for each run and teacher, exactly once; where they are is written to `out`."""
    results = report.load(records, runs, teachers)
    gains = report.gains(results)
    rows = [_teacher_row(results, name, common) for name in teachers]
    rows += [_run_row(run, results, gains, [*artifacts.get(run.name, ()), *common]) for run in results.runs.values()]
    for path in (path for row in rows for path in row.artifacts):
        if not path.exists():
            raise InputError(
                f"{path} is to be kept with the results, but isn't there. Run `dvc repro`, or `dvc checkout` if it was made before."
            )
    ids: dict[str, dict[str, str]] = {"run": {}, "teacher": {}}
    new = []
    with _reachable():
        client, experiment = _open()
        with _locked(project() / ".work" / "track.lock"):  # two at once would both miss the row and both write it
            for row in rows:
                found = _find(client, experiment, row)
                if found is None:
                    new.append(row.name)
                ids[row.kind][row.name] = found or _write(client, experiment, row)
    logged = Logged(_shown(tracking_uri()), experiment, ids["run"], ids["teacher"], new)
    with atomic_file(out) as file:
        told = {"tracking_uri": logged.tracking_uri, "experiment": logged.experiment, "runs": logged.runs, "teachers": logged.teachers}
        file.write_text(json.dumps(told, indent=1) + "\n")
    return logged


def view_link(port: int) -> str:
    """The address of the comparison of all rows, best first, in the UI at this port (or at the server that is set)."""
    with _reachable():
        client, experiment = _open()
        state = {
            "searchFilter": "tags.pipeline_key LIKE '%'",
            "orderByKey": "metrics.`best/top1`",
            "orderByAsc": False,
            "selectedColumns": COLUMNS,
        }
        packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        view = {"name": "Students", "createdAt": now, "updatedAt": now, "state": packed}
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))
    uri = tracking_uri()
    server = _without_credentials(uri).rstrip("/") if urlsplit(uri).scheme in ("http", "https") else f"http://127.0.0.1:{port}"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def project() -> Path:
    """The main checkout, also inside the temporary folder of `dvc exp run --temp`, whatever the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path(__file__).resolve().parents[1])


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project() / 'mlflow.db'}"


# --- rows ------------------------------------------------------------------------------------------------------------


def _run_row(run: report.Run, results: report.Results, gains: "Mapping[str, Gain]", artifacts: Sequence[Path]) -> Row:
    own = [run.records[stage] for stage in report.RUN_STAGES]
    scores = run.records["evaluate"].metrics
    headline = {"top1": scores["accuracy"], "spread": scores["spread"]} | _cost(run.records["benchmark"].metrics)
    versus = []
    if run.name in gains:
        headline["gain"] = gains[run.name].mean
        versus = [results.runs[run.baseline].records["evaluate"].id] if run.baseline else []
    return Row("run", run.name, [results.prepare, results.teachers[run.teacher]], own, headline, versus, artifacts)


def _teacher_row(results: report.Results, name: str, artifacts: Sequence[Path]) -> Row:
    headline = {}
    run = results.taught_by(name)
    if run is not None:
        headline = {"top1": run.records["evaluate"].details["teacher"]["accuracy"]} | _cost(run.records["benchmark"].details["teacher"])
        headline.pop("latency_ms", None)  # measured in PyTorch: beside the students' ONNX files it would flatter them
    return Row("teacher", name, [results.prepare], [results.teachers[name]], headline, [], artifacts)


def _cost(speed: Mapping[str, float]) -> dict[str, float]:
    names = {"latency_ms": "latency_ms", "size_mb": "size_mb", "params_m": "parameters_m"}
    return {ours: speed[theirs] for ours, theirs in names.items() if theirs in speed}


def _params(row: Row) -> dict[str, str]:
    """What the stages read; where two read different values under one name, the later stage's is named after it."""
    params: dict[str, str] = {}
    for record in row.records:
        for key, value in _flat(record.params):
            if params.setdefault(_name(key), value) != value:
                params[_name(f"{record.stage}.{key}")] = value
    return params


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _points(row: Row) -> Iterator[tuple[str, float, int, int]]:
    """Name, value, milliseconds and step: the curves of its own stages, then one point for each final number."""
    for record in row.own:
        before = 0.0
        for key, curve in record.curves.items():
            seconds = curve.get("seconds", [])
            # a teacher's curve is named as its stage; its last value must not be mistaken for the final number
            series = key if "/" in key else f"{key}/epochs"
            for i, epoch in enumerate(curve["epoch"]):
                moment = _milliseconds(record.started) + round(1000 * (before + (seconds[i] if seconds else 0)))
                for column in curve.keys() - {"epoch"}:
                    yield _name(f"{series}/{column}"), curve[column][i], moment, round(epoch)
            before += seconds[-1] if seconds else 0
    for record in row.records:
        for key, value in record.metrics.items():
            yield _name(f"{record.stage}/{key}"), value, _milliseconds(record.finished), 0
    for key, value in row.headline.items():
        yield f"best/{key}", value, _milliseconds(row.own[-1].finished), 0


def _tags(row: Row) -> dict[str, str]:
    outputs = {record.stage: record.outputs for record in row.records}
    hashes = {"data": row.shared[0].details["manifest"]["content"], "teacher": _digest(outputs["teacher"])}
    if row.kind == "run":
        hashes["student"] = _digest(outputs["distill"])
    tags = {"kind": row.kind, "pipeline_key": row.key, "mlflow.note.content": _description(row)}
    tags |= {f"hash.{key}": value for key, value in hashes.items()}
    tags |= {f"stage.{record.stage}": record.id for record in row.records}
    tags |= {f"environment.{_name(key)}": str(value) for key, value in row.own[0].environment.items()}
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.exp"] = experiment
    if commit := _git("rev-parse", "HEAD"):
        tags |= {"git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain", "--", *CODE))).lower()}
    return tags


def _digest(outputs: Mapping[str, str]) -> str:
    return next(iter(outputs.values())) if len(outputs) == 1 else hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def _description(row: Row) -> str:
    numbers = "\n".join(f"- {key}: {value:.6g}" for key, value in row.headline.items())
    stages = "\n".join(f"| {r.stage} {r.name} | {r.finished[:19]} | {r.seconds:.1f} | `{r.id[:8]}` |" for r in row.records)
    return f"{row.kind} **{row.name}**\n\n{numbers}\n\n| stage | finished | seconds | record |\n|---|---|---|---|\n{stages}\n"


def _name(text: str) -> str:
    """MLflow refuses other characters in the names of parameters, metrics and tags."""
    return re.sub(r"[^\w\-./: ]", "_", text, flags=re.ASCII)[:250]


def _milliseconds(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())


def _git(*command: str) -> str:
    """Of the code that runs, which in a DVC experiment isn't the main checkout; empty where there is no git."""
    try:
        told = subprocess.run(["git", *command], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=20)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""


# --- MLflow ----------------------------------------------------------------------------------------------------------


def _find(client: "MlflowClient", experiment: str, row: Row) -> str | None:
    """The row's id if it was logged before; what a stopped attempt left is removed."""
    finished = None
    for run in client.search_runs([experiment], f"tags.pipeline_key = '{row.key}'"):
        if run.info.status == "FINISHED":
            finished = run.info.run_id
        else:
            client.delete_run(run.info.run_id)
    return finished


def _write(client: "MlflowClient", experiment: str, row: Row) -> str:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    end = _milliseconds(row.own[-1].finished)
    start = end - round(1000 * sum(record.seconds for record in row.own))  # its own work, not the shared stages'
    run = client.create_run(experiment, start_time=start, tags=_tags(row), run_name=row.name).info.run_id
    try:
        metrics = [Metric(*point) for point in _points(row) if math.isfinite(point[1])]
        client.log_batch(
            run, metrics, [Param(key, value) for key, value in _params(row).items()]
        )  # cuts into calls and values as long as allowed
        data = row.shared[0].details["manifest"]
        source = {"source": data["source"], "content": data["content"]}
        profile = {"splits": data["splits"], "classes": len(data["classes"])}
        dataset = Dataset(data["source"], data["content"][:32], "code", json.dumps(source), profile=json.dumps(profile))
        client.log_inputs(run, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "all splits")])])
        for record in row.records:
            client.log_dict(run, vars(record), f"records/{record.stage}.json")
        for path in row.artifacts:
            if path.is_dir():
                client.log_artifacts(run, str(path), path.name)
            else:
                client.log_artifact(run, str(path))
        client.set_terminated(run, "FINISHED", end)
    except BaseException:
        _close_failed(client, run)
        raise
    return run


def _close_failed(client: "MlflowClient", run: str) -> None:
    """As far as possible: what broke the row may have taken the store with it, and is the error to show."""
    from mlflow import MlflowException

    try:
        client.set_terminated(run, "FAILED")
    except (MlflowException, OSError):
        return


def _open() -> "tuple[MlflowClient, str]":
    """A client and our experiment, which is made where it is missing; on a fresh database by one process at a time."""
    uri, name = tracking_uri(), os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database is None or _initialised(database, name):
        return _connect(uri, name, None)
    with _locked(database.with_name(f"{database.name}.lock")):
        opened = _connect(uri, name, (database.absolute().parent / "mlartifacts").as_uri())
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays; readers and the UI no longer wait for a writer
    return opened


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
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _reachable() -> Iterator[None]:
    """What goes wrong with the store is told with the way out: nothing trained depends on it."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = str(error).replace(tracking_uri(), _shown(tracking_uri())).partition("\n")[0][:300]
        raise InputError(
            f"MLflow at {_shown(tracking_uri())} can't be used: {reason} No model is lost: models, records and report are in the project. "
            "Check MLFLOW_TRACKING_URI and the server; then `dvc repro track` logs what is missing."
        ) from error


def _shown(uri: str) -> str:
    """The store as it may be written down: relative to the project where it lies inside, and without credentials."""
    inside = f"sqlite:///{project()}/"
    return f"sqlite:///{uri.removeprefix(inside)}" if uri.startswith(inside) else _without_credentials(uri)


def _without_credentials(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri).partition("?")[0]
