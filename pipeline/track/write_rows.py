"""Each row is written exactly once, whatever is stopped or runs at the same time."""

import json
import math
import os
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import atomic_file
from pipeline.records.record import Record
from pipeline.records.results import load_results
from pipeline.settings import InputError
from pipeline.track import database, rows
from pipeline.track.rows import Row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# files that make a working tree dirty if they changed; the results beside them do not
CODE = ["*.py", "params.yaml", "dvc.yaml", "requirements.lock"]


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
    """The row, if it was logged before.

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
    for run in [*finished[1:], *stopped]:
        client.delete_run(run.info.run_id)
    return finished[0] if finished else None


def _write(client: "MlflowClient", experiment: str, row: Row, artifacts: Sequence[Path]) -> None:
    makers = _makers(client, experiment, row)
    tags = rows.tags(row) | _git_and_dvc_tags() | {"writer": database.writer_id()}
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
        for record in row.records:
            client.log_dict(run, vars(record), f"records/{record.stage}.json")
        for path in artifacts:
            if path.is_dir():
                client.log_artifacts(run, str(path), path.name)
            else:
                client.log_artifact(run, str(path))
        for record in row.records:
            if record.curves and record.stage not in makers:
                _nest_live_run(client, experiment, record, run)
        client.set_terminated(run, "FINISHED", row.end)
    except BaseException:
        _close_failed(client, run)
        raise


def _log_numbers(client: "MlflowClient", run: str, row: Row) -> None:
    from mlflow.entities import Metric, Param

    metrics = [Metric(*point) for point in rows.points(row) if math.isfinite(point[1])]
    params = [Param(key, value) for key, value in rows.params(row).items()]
    client.log_batch(run, metrics, params)  # cuts these into calls, and values, that are short enough


def _log_data(client: "MlflowClient", run: str, row: Row) -> None:
    from mlflow import MlflowException
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = row.shared[0].details["manifest"]
    source = json.dumps({"source": data["source"], "content": data["content"]})
    profile = json.dumps({"splits": data["splits"], "classes": len(data["classes"])})
    dataset = Dataset(data["source"], data["content"][:32], "code", source, profile=profile)
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "all splits")])]
    try:
        client.log_inputs(run, datasets=inputs)
    except MlflowException:  # another machine has just logged the same data, so it is there now
        client.log_inputs(run, datasets=inputs)


def _makers(client: "MlflowClient", experiment: str, row: Row) -> "dict[str, Run]":
    """For each stage that DVC took from its cache, the row that was the first with this record."""
    found = {}
    for record in row.records:
        query = f"tags.`stage.{record.stage}` = '{record.id}' AND attributes.status = 'FINISHED'"
        users = client.search_runs([experiment], query)
        if makers := [run for run in users if f"cached.{record.stage}" not in run.data.tags]:
            found[record.stage] = makers[0]
    return found


def _nest_live_run(client: "MlflowClient", experiment: str, record: Record, row: str) -> None:
    """If somebody followed the stage while it trained, nest the run that shows it under the row."""
    query = f"tags.kind = 'stage' AND tags.record = '{record.id}'"
    for run in client.search_runs([experiment], query):
        client.set_tag(run.info.run_id, "mlflow.parentRunId", row)


def _add_experiment_name(client: "MlflowClient", run: "Run") -> None:
    """A row that several DVC experiments share has all their names, so that each finds all of its rows."""
    name, names = os.environ.get("DVC_EXP_NAME"), run.data.tags.get("dvc.exp", "").split()
    if name and name not in names:
        client.set_tag(run.info.run_id, "dvc.exp", " ".join([*names, name]))


def _git_and_dvc_tags() -> dict[str, str]:
    tags = {}
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.exp"] = experiment
    if commit := _git("rev-parse", "HEAD"):
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--", *CODE))).lower()
    return tags


def _git(*command: str) -> str:
    """What git prints about the project: in a DVC experiment, a copy. Empty where there is no git."""
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, timeout=20)  # noqa: S603, S607
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
