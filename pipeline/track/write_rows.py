"""Each row is written exactly once, whatever is stopped or runs at the same time."""

import getpass
import json
import math
import os
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import atomic_file
from pipeline.records.record import Record
from pipeline.records.results import load_results
from pipeline.settings import InputError
from pipeline.track import database, old_rows, rows
from pipeline.track.rows import Row
from pipeline.track.trainings import Training

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# files that make a working tree dirty if they changed; the results beside them do not
CODE = ["*.py", "params.yaml", "dvc.yaml", "requirements.lock"]
OF_TRAINING = ("method", "student", "teacher")  # settings that a training repeats, to colour its curves by


@dataclass(frozen=True)
class Logged:
    """Where the rows are: ids of MLflow runs by name. `new` are the rows that were not there before."""

    tracking_uri: str
    experiment: str
    runs: dict[str, str]
    teachers: dict[str, str]
    new: list[str]


def write_rows(
    records: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    artifacts: Mapping[str, Sequence[Path]],
    common: Sequence[Path],
    out: Path,
    analysed: Collection[str] = (),
) -> Logged:
    """Write one row for each run and teacher that has none yet, and where all rows are into `out`.

    `artifacts` are files and folders to keep with a run, `common` those to keep with every row. `analysed`
    names the runs that have an analysis.
    """
    wanted = rows.build_rows(load_results(records, runs, teachers, analysed=analysed))
    files = {("run", name): [*artifacts.get(name, ()), *common] for name in runs}
    _check_existence([*common, *(path for paths in files.values() for path in paths)])
    ids: dict[str, dict[str, str]] = {"run": {}, "teacher": {}}
    new = []
    with database.open_for_writing() as (client, experiment):
        old_rows.rename(client, experiment)
        for row in wanted:
            found = find_row(client, experiment, row)
            if found is None:
                new.append(row.name)
                _write(client, experiment, row, files.get((row.kind, row.name), common))
                # again, because on a shared server another machine may have written it at the same time
                found = find_row(client, experiment, row)
                assert found is not None
            else:
                _add_experiment_name(client, found)
            ids[row.kind][row.name] = found.info.run_id
    logged = Logged(database.public_uri(database.tracking_uri()), experiment, ids["run"], ids["teacher"], new)
    with atomic_file(out) as file:
        where = {key: value for key, value in vars(logged).items() if key != "new"}
        file.write_text(json.dumps(where, indent=1) + "\n")
    return logged


def _check_existence(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise InputError(
                f"{path} is to be kept with the results, but it does not exist. Run `dvc repro`, or `dvc "
                "checkout` if it was made before."
            )


def find_row(client: "MlflowClient", experiment: str, row: Row) -> "Run | None":
    """The row, if it was logged before. One of an earlier version is removed, to be written again.

    Of two equal rows one is removed. A row that failed is removed too, and so is an unfinished one of this
    project on this machine: since we hold its lock, its writer was killed. Another machine may still be
    writing the others.
    """
    found = client.search_runs([experiment], f"tags.pipeline_key = '{row.key}'")
    finished = sorted(
        (run for run in found if run.info.status == "FINISHED"), key=lambda run: run.info.run_id
    )
    stopped = [
        run
        for run in found
        if run.info.status == "FAILED"
        or (run not in finished and run.data.tags.get("writer") == database.writer_id())
    ]
    ours = [run for run in finished if run.data.tags.get("form") == rows.FORM]
    older = [run for run in finished if run not in ours]  # of an earlier version of this project
    for run in [*ours[1:], *older, *stopped]:
        _delete(client, experiment, run)
    return ours[0] if ours else None


def _delete(client: "MlflowClient", experiment: str, run: "Run") -> None:
    """With the trainings below it."""
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    for child in client.search_runs([experiment], query):
        client.delete_run(child.info.run_id)
    client.delete_run(run.info.run_id)


def _write(client: "MlflowClient", experiment: str, row: Row, artifacts: Sequence[Path]) -> None:
    makers = _makers(client, experiment, row)
    tags = rows.tags(row) | sources() | {"writer": database.writer_id()}
    tags |= {f"cached.{stage}": run.info.run_id for stage, run in makers.items()}
    links = {
        stage: f"[{run.info.run_name}](#/experiments/{experiment}/runs/{run.info.run_id})"
        for stage, run in makers.items()
    }
    tags["mlflow.note.content"] = rows.description(row, links)
    run = client.create_run(experiment, start_time=row.start, tags=tags, run_name=row.name).info.run_id
    try:
        _log_numbers(client, run, row)
        _log_data(client, run, row)
        client.log_dict(run, rows.origin(row), "origin.json")
        for record in row.records:
            client.log_dict(run, vars(record), f"records/{record.stage}.json")
        for training in row.trainings:
            _write_training(client, experiment, row, training, run)
        for path in artifacts:
            if path.is_dir():
                client.log_artifacts(run, str(path), path.name)
            else:
                client.log_artifact(run, str(path))
        for record in row.records:
            if record.curves and record.stage not in makers:
                _remove_live_runs(client, experiment, record)
        client.set_terminated(run, "FINISHED", row.end)
    except BaseException:
        _close_failed(client, run)
        raise


def _log_numbers(client: "MlflowClient", run: str, row: Row) -> None:
    from mlflow.entities import Metric, Param

    metrics = [Metric(*point) for point in rows.points(row) if math.isfinite(point[1])]
    params = [Param(key, value) for key, value in row.params.items()]
    client.log_batch(run, metrics, params)  # cuts these into calls, and values, that are short enough


def _log_data(client: "MlflowClient", run: str, row: Row) -> None:
    from mlflow import MlflowException
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = row.shared[0].details["manifest"]
    source = json.dumps({"source": data["source"], "content": data["content"]})
    inputs = [
        DatasetInput(
            Dataset(data["source"], digest, "code", source, profile=json.dumps(profile)),
            [InputTag("mlflow.data.context", context)],
        )
        for context, digest, profile in rows.splits(row)
    ]
    try:
        client.log_inputs(run, datasets=inputs)
    except MlflowException:  # another machine has just logged the same data, so it is there now
        client.log_inputs(run, datasets=inputs)


def _write_training(
    client: "MlflowClient", experiment: str, row: Row, training: Training, parent: str
) -> None:
    from mlflow.entities import Metric, Param

    tags = {
        "kind": "seed" if training.seed is not None else "training",
        "mlflow.parentRunId": parent,
        **({"exported": str(training.exported).lower()} if training.seed is not None else {}),
        **sources(),
    }
    created = client.create_run(experiment, start_time=training.start, tags=tags, run_name=training.name)
    run = created.info.run_id
    shown = {key: row.params[key] for key in OF_TRAINING if key in row.params}
    params = [Param(key, value) for key, value in shown.items()]
    params += [] if training.seed is None else [Param("seed", str(training.seed))]
    points = [point for point in training.points() if math.isfinite(point[1])]
    client.log_batch(run, [Metric(*point) for point in points], params)
    client.set_terminated(run, "FINISHED", training.end)


def _makers(client: "MlflowClient", experiment: str, row: Row) -> "dict[str, Run]":
    """For each stage that DVC took from its cache, the row that was the first with this record."""
    found = {}
    for record in row.records:
        query = f"tags.`stage.{record.stage}` = '{record.id}' AND attributes.status = 'FINISHED'"
        users = client.search_runs([experiment], query)
        if makers := [run for run in users if f"cached.{record.stage}" not in run.data.tags]:
            found[record.stage] = makers[0]
    return found


def _remove_live_runs(client: "MlflowClient", experiment: str, record: Record) -> None:
    """If somebody followed the stage while it trained: its curves are below the row now."""
    query = f"tags.kind = 'stage' AND tags.record = '{record.id}'"
    for run in client.search_runs([experiment], query):
        client.delete_run(run.info.run_id)


def _add_experiment_name(client: "MlflowClient", run: "Run") -> None:
    """A row that several DVC experiments share has all their names, so that each finds all of its rows."""
    name, names = os.environ.get("DVC_EXP_NAME"), run.data.tags.get("dvc.exp", "").split()
    if name and name not in names:
        client.set_tag(run.info.run_id, "dvc.exp", " ".join([*names, name]))


def sources() -> dict[str, str]:
    """Who ran what, in the fields that MLflow has for it."""
    tags = {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT"}
    if user := _user():
        tags["mlflow.user"] = user
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.exp"] = experiment
    return tags | _commit()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of a container may have no name
        return ""


@cache
def _commit() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    is_dirty = bool(_git("status", "--porcelain", "--", *CODE))
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(is_dirty).lower()}


def _git(*command: str) -> str:
    """What git prints about the project: in a DVC experiment, a copy. Empty where there is no git."""
    try:
        words = ["git", *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _close_failed(client: "MlflowClient", run: str) -> None:
    """Mark the run as failed, if the store still answers. The error to show is the one that broke the row."""
    from mlflow import MlflowException

    try:
        client.set_terminated(run, "FAILED")
    except (MlflowException, OSError):
        return
