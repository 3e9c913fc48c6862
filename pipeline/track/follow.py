"""What trains right now, in MLflow: one run for each seed of a stage that trains.

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
from pipeline.track import database, naming, shown_settings, trainings
from pipeline.track.trainings import phase_and_seed

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAUSE = 2.0  # seconds between two rounds
NOTHING = "Nothing is training right now. What trains later appears within ten seconds."
BEGUN = "Training has begun. Its curves appear with its first point."
Key = tuple[str, str]  # the id of a stage's record, and the seed that it trains, or ""


@dataclass
class LiveRun:
    """The MLflow run of a training, and how many points of each curve it has."""

    id: str
    points: dict[str, int]


def follow(work: Path, *, rounds: Iterable[Any] | None = None) -> None:
    """Log what the stages write below `work`, until this process is stopped or `rounds` has no more items."""
    folder = work / "live"
    try:
        with locked(folder / FOLLOWER, wait=False), database.explained_errors():
            client, experiment = database.open_experiment()
            live, said = _unfinished(client, experiment), ""
            for _ in itertools.count() if rounds is None else rounds:
                (folder / FOLLOWER).touch()
                live = update(client, experiment, folder, live)
                news = "" if live else BEGUN if _is_training(folder) else NOTHING
                if news not in ("", said):
                    print(news, flush=True)
                said = news
                time.sleep(PAUSE)
    except BlockingIOError:
        raise InputError(
            f"Another process already follows the training (lock {folder / FOLLOWER}). Use it, or stop it."
        ) from None


def update(
    client: "MlflowClient", experiment: str, folder: Path, live: Mapping[Key, LiveRun]
) -> dict[Key, LiveRun]:
    """Log what is new in the files of `folder`.

    `live` are the runs that were unfinished before; returned are those that are unfinished now.
    """
    unfinished: dict[Key, LiveRun] = {}
    for file in sorted(folder.glob("*.json")):
        dead = not held(lock_of(file))  # before the file is read: a stage writes its end, then frees the lock
        try:
            stage = json.loads(file.read_text())
        except FileNotFoundError:  # the stage has ended in the meantime
            continue
        runs = _log_stage(client, experiment, stage, live)
        status = "KILLED" if dead and stage["status"] == "RUNNING" else stage["status"]
        if status == "RUNNING":
            unfinished |= runs
        else:
            for run in runs.values():
                client.set_terminated(run.id, status)
            file.unlink()
            lock_of(file).unlink(missing_ok=True)
    for key in live.keys() - unfinished.keys():
        # its file is gone, and with it how the stage ended
        if client.get_run(live[key].id).info.status == "RUNNING":
            client.set_terminated(live[key].id, "KILLED")
    return unfinished


def _is_training(folder: Path) -> bool:
    """Whether a stage is at work that has no point of a curve yet."""
    return any(held(lock) for lock in folder.glob("*.lock") if lock.name != FOLLOWER)


def _log_stage(
    client: "MlflowClient", experiment: str, stage: Mapping[str, Any], live: Mapping[Key, LiveRun]
) -> dict[Key, LiveRun]:
    """Log what is new of each training of a stage; returns their runs."""
    runs: dict[Key, LiveRun] = {}
    for key, curve in stage["curves"].items():
        phase, seed = phase_and_seed(key)
        name = (stage["id"], "" if seed is None else str(seed))
        runs[name] = runs.get(name) or live.get(name) or _start(client, experiment, stage, name[1])
        _log_points(client, runs[name], key, curve, prefix="" if phase == stage["stage"] else f"{phase}_")
    return runs


def _start(client: "MlflowClient", experiment: str, stage: Mapping[str, Any], seed: str) -> LiveRun:
    from mlflow.entities import Param

    name = " ".join(filter(None, (stage["stage"], stage["name"], seed and f"seed {seed}")))
    tags = {"kind": "stage", "record": stage["id"], "writer": database.writer_id(), "points": "{}"}
    tags |= {"seed": seed} if seed else {}
    run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    settings = list(shown_settings.flatten(stage["params"].get("run", stage["params"])))
    params = [Param(naming.mlflow_name(key), shown_settings.as_text(value)) for key, value in settings]
    method = stage["params"].get("run", {}).get("method", {}).get("name", stage["stage"])
    client.log_batch(run, params=[Param("method", method), *params][: shown_settings.MOST])
    print(f"{name}: its curves are in MLflow from now on", flush=True)
    return LiveRun(run, {})


def _log_points(client: "MlflowClient", run: LiveRun, key: str, curve: Curves, *, prefix: str) -> None:
    from mlflow.entities import Metric

    start = 1000 * (time.time() - curve["seconds"][-1])
    points = list(trainings.points(curve, start=start, prefix=prefix, first=run.points.get(key, 0)))
    if points:
        client.log_batch(run.id, [Metric(*point) for point in points if math.isfinite(point[1])])
        run.points[key] = len(curve["epoch"])
        client.set_tag(run.id, "points", json.dumps(run.points))


def _unfinished(client: "MlflowClient", experiment: str) -> dict[Key, LiveRun]:
    """The runs of an earlier process of this project that was stopped while it followed."""
    query = (
        f"tags.kind = 'stage' AND tags.writer = '{database.writer_id()}' AND attributes.status = 'RUNNING'"
    )
    return {
        (run.data.tags["record"], run.data.tags.get("seed", "")): LiveRun(
            run.info.run_id, json.loads(run.data.tags["points"])
        )
        for run in client.search_runs([experiment], query)
    }
