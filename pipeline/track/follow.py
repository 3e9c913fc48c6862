"""What trains right now, in MLflow: one run for each training stage.

This is a process of its own. It reads what the stages write while they train (records/progress.py), so no
training imports MLflow, waits for it or fails with it. The rows are the same whether somebody follows or not.
"""

import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import held, locked
from pipeline.records.progress import FOLLOWER, lock_of
from pipeline.records.record import Curves
from pipeline.settings import InputError
from pipeline.track import database, rows

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAUSE = 2.0  # seconds between two rounds


@dataclass
class LiveRun:
    """The MLflow run of a stage that is training, and how many points of each curve it has."""

    id: str
    points: dict[str, int]


def follow(work: Path, *, rounds: Iterable[Any] | None = None) -> None:
    """Log what the stages write below `work`, until this process is stopped or `rounds` has no more items."""
    folder = work / "live"
    try:
        with locked(folder / FOLLOWER, wait=False), database.explained_errors():
            client, experiment = database.open_experiment()
            live = _unfinished(client, experiment)
            for _ in itertools.count() if rounds is None else rounds:
                (folder / FOLLOWER).touch()
                live = update(client, experiment, folder, live)
                time.sleep(PAUSE)
    except BlockingIOError:
        raise InputError(
            f"Another process already follows the training (lock {folder / FOLLOWER}). Use it, or stop it."
        ) from None


def update(
    client: "MlflowClient", experiment: str, folder: Path, live: Mapping[str, LiveRun]
) -> dict[str, LiveRun]:
    """Log what is new in the files of `folder`.

    `live` are the runs that were unfinished before, by the id of their stage's record; returned are those
    that are unfinished now.
    """
    unfinished: dict[str, LiveRun] = {}
    for file in sorted(folder.glob("*.json")):
        dead = not held(lock_of(file))  # before the file is read: a stage writes its end, then frees the lock
        try:
            stage = json.loads(file.read_text())
        except FileNotFoundError:  # the stage has ended in the meantime
            continue
        run = live.get(stage["id"]) or _start(client, experiment, stage)
        _log_points(client, run, stage["curves"])
        status = "KILLED" if dead and stage["status"] == "RUNNING" else stage["status"]
        if status == "RUNNING":
            unfinished[stage["id"]] = run
        else:
            client.set_terminated(run.id, status)
            file.unlink()
            lock_of(file).unlink(missing_ok=True)
    for record in live.keys() - unfinished.keys():
        # its file is gone, and with it how the stage ended
        if client.get_run(live[record].id).info.status == "RUNNING":
            client.set_terminated(live[record].id, "KILLED")
    return unfinished


def _start(client: "MlflowClient", experiment: str, stage: Mapping[str, Any]) -> LiveRun:
    from mlflow.entities import Param

    name = f"{stage['stage']} {stage['name']}"
    tags = {"kind": "stage", "record": stage["id"], "writer": database.writer_id(), "points": "{}"}
    run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    params = [Param(rows.mlflow_name(key), value) for key, value in rows.flatten(stage["params"])]
    client.log_batch(run, params=params)
    print(f"{name}: its curves are in MLflow from now on", flush=True)
    return LiveRun(run, {})


def _log_points(client: "MlflowClient", run: LiveRun, curves: Mapping[str, Curves]) -> None:
    from mlflow.entities import Metric

    now = 1000 * time.time()
    points = [
        point
        for key, curve in curves.items()
        for point in rows.curve_points(
            key, curve, start=now - 1000 * curve["seconds"][-1], first=run.points.get(key, 0)
        )
    ]
    if points:
        client.log_batch(run.id, [Metric(*point) for point in points if math.isfinite(point[1])])
        run.points |= {key: len(curve["epoch"]) for key, curve in curves.items()}
        client.set_tag(run.id, "points", json.dumps(run.points))


def _unfinished(client: "MlflowClient", experiment: str) -> dict[str, LiveRun]:
    """The runs of an earlier process of this project that was stopped while it followed."""
    query = (
        f"tags.kind = 'stage' AND tags.writer = '{database.writer_id()}' AND attributes.status = 'RUNNING'"
    )
    return {
        run.data.tags["record"]: LiveRun(run.info.run_id, json.loads(run.data.tags["points"]))
        for run in client.search_runs([experiment], query)
    }
