"""Each row written exactly once, whatever was stopped or runs beside it."""

import json
import math
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import report
from pipeline.checkpoint import atomic_file
from pipeline.inputs import InputError
from pipeline.record import Record
from pipeline.track import rows, store
from pipeline.track.rows import Row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CODE = ["*.py", "params.yaml", "dvc.yaml", "requirements.lock"]  # what makes a working tree dirty; the results beside it don't


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
    analysed: Collection[str] = (),
) -> Logged:
    """One row for each run and teacher, exactly once; where they are is written to `out`. `analysed` are some of the runs."""
    results = report.load(records, runs, teachers, analysed=analysed)
    told = rows.of(results)
    kept = {name: [*artifacts.get(name, ()), *common] for name in runs}
    for path in (path for paths in (common, *kept.values()) for path in paths):
        if not path.exists():
            raise InputError(
                f"{path} is to be kept with the results, but isn't there. Run `dvc repro`, or `dvc checkout` if it was made before."
            )
    ids: dict[str, dict[str, str]] = {"run": {}, "teacher": {}}
    new = []
    with store.writing() as (client, experiment):
        for row in told:
            found = find(client, experiment, row)
            if found is None:
                new.append(row.name)
                _write(client, experiment, row, kept[row.name] if row.kind == "run" else common)
                found = find(client, experiment, row)  # again: on a shared server another machine may have been as fast
                assert found is not None
            else:
                _name_experiment(client, found)
            ids[row.kind][row.name] = found.info.run_id
    logged = Logged(store.shown(store.tracking_uri()), experiment, ids["run"], ids["teacher"], new)
    with atomic_file(out) as file:
        where = {"tracking_uri": logged.tracking_uri, "experiment": logged.experiment, "runs": logged.runs, "teachers": logged.teachers}
        file.write_text(json.dumps(where, indent=1) + "\n")
    return logged


def find(client: "MlflowClient", experiment: str, row: Row) -> "Run | None":
    """The row if it was logged before. One of two equal ones is removed, and so is what an attempt left that was stopped:
    a row that is still being written is left alone unless it is ours, and then we were killed, as the lock is ours now."""
    found = client.search_runs([experiment], f"tags.pipeline_key = '{row.key}'")
    finished = sorted((run for run in found if run.info.status == "FINISHED"), key=lambda run: run.info.run_id)
    stopped = [
        run for run in found if run.info.status == "FAILED" or (run not in finished and run.data.tags.get("writer") == store.writer())
    ]
    for run in [*finished[1:], *stopped]:
        client.delete_run(run.info.run_id)
    return finished[0] if finished else None


def _write(client: "MlflowClient", experiment: str, row: Row, artifacts: Sequence[Path]) -> None:
    from mlflow import MlflowException
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    makers = _makers(client, experiment, row)
    links = {stage: f"[{run.info.run_name}](#/experiments/{experiment}/runs/{run.info.run_id})" for stage, run in makers.items()}
    tags = rows.tags(row) | _surroundings() | {"writer": store.writer(), "mlflow.note.content": rows.description(row, links)}
    tags |= {f"cached.{stage}": run.info.run_id for stage, run in makers.items()}
    run = client.create_run(experiment, start_time=row.start, tags=tags, run_name=row.name).info.run_id
    try:
        metrics = [Metric(*point) for point in rows.points(row) if math.isfinite(point[1])]
        # cuts into calls and values as long as allowed
        client.log_batch(run, metrics, [Param(key, value) for key, value in rows.params(row).items()])
        data = row.shared[0].details["manifest"]
        source = {"source": data["source"], "content": data["content"]}
        profile = {"splits": data["splits"], "classes": len(data["classes"])}
        dataset = Dataset(data["source"], data["content"][:32], "code", json.dumps(source), profile=json.dumps(profile))
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "all splits")])]
        try:
            client.log_inputs(run, datasets=inputs)
        except MlflowException:  # another machine has just made known the same data: now it is there
            client.log_inputs(run, datasets=inputs)
        for record in row.records:
            client.log_dict(run, vars(record), f"records/{record.stage}.json")
        for path in artifacts:
            if path.is_dir():
                client.log_artifacts(run, str(path), path.name)
            else:
                client.log_artifact(run, str(path))
        for record in row.records:
            if record.curves and record.stage not in makers:
                _take_in(client, experiment, record, run)
        client.set_terminated(run, "FINISHED", row.end)
    except BaseException:
        _close_failed(client, run)
        raise


def _makers(client: "MlflowClient", experiment: str, row: Row) -> "dict[str, Run]":
    """By stage, the row that a record was first logged with, where there is one: DVC took that stage from its cache."""
    found = {}
    for record in row.records:
        query = f"tags.`stage.{record.stage}` = '{record.id}' AND attributes.status = 'FINISHED'"
        users = client.search_runs([experiment], query)
        if makers := [run for run in users if f"cached.{record.stage}" not in run.data.tags]:
            found[record.stage] = makers[0]
    return found


def _take_in(client: "MlflowClient", experiment: str, record: Record, row: str) -> None:
    """What was shown of a stage while it trained, if somebody looked on, becomes a part of the row that it was made for."""
    for run in client.search_runs([experiment], f"tags.kind = 'stage' AND tags.record = '{record.id}'"):
        client.set_tag(run.info.run_id, "mlflow.parentRunId", row)


def _name_experiment(client: "MlflowClient", run: "Run") -> None:
    """A row that a DVC experiment has in common with others carries all their names, so that each finds all of its rows."""
    name, names = os.environ.get("DVC_EXP_NAME"), run.data.tags.get("dvc.exp", "").split()
    if name and name not in names:
        client.set_tag(run.info.run_id, "dvc.exp", " ".join([*names, name]))


def _surroundings() -> dict[str, str]:
    told = {}
    if experiment := os.environ.get("DVC_EXP_NAME"):
        told["dvc.exp"] = experiment
    if commit := _git("rev-parse", "HEAD"):
        told |= {"git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain", "--", *CODE))).lower()}
    return told


def _git(*command: str) -> str:
    """Of the code that runs, which in a DVC experiment isn't the main checkout; empty where there is no git."""
    try:
        told = subprocess.run(["git", *command], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=20)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""


def _close_failed(client: "MlflowClient", run: str) -> None:
    """As far as possible: what broke the row may have taken the store with it, and is the error to show."""
    from mlflow import MlflowException

    try:
        client.set_terminated(run, "FAILED")
    except (MlflowException, OSError):
        return
