"""What trains right now, in MLflow: a run for each training stage, which its row takes in when the graph has ended.

A process of its own reads what the stages write down while they train (pipeline/live.py), so that no training imports MLflow, waits for
it or fails with it. Whether anybody followed changes nothing in the rows.
"""

import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.inputs import InputError
from pipeline.live import FOLLOWER, lock_of
from pipeline.locks import held, locked
from pipeline.track import rows, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAUSE = 2.0  # seconds


@dataclass
class Shown:
    """A stage's MLflow run, and how many points of each curve it has."""

    run: str
    points: dict[str, int]


def follow(work: Path, *, looks: Iterable[Any] = itertools.count()) -> None:
    """Until it is stopped, or as often as `looks` has something."""
    folder = work / "live"
    try:
        with locked(folder / FOLLOWER, wait=False), store.reachable():
            client, experiment = store.opened()
            going = _left(client, experiment)
            for _ in looks:
                (folder / FOLLOWER).touch()
                going = look(client, experiment, folder, going)
                time.sleep(PAUSE)
    except BlockingIOError:
        raise InputError(f"What trains is already being followed by another process (lock {folder / FOLLOWER}).") from None


def look(client: "MlflowClient", experiment: str, folder: Path, going: Mapping[str, Shown]) -> dict[str, Shown]:
    """The runs that go on, by the id of the record that their stage will write."""
    now: dict[str, Shown] = {}
    for file in sorted(folder.glob("*.json")):
        dead = not held(lock_of(file))  # asked first: a stage tells its end before it lets the lock go
        try:
            told = json.loads(file.read_text())
        except FileNotFoundError:  # it ended as we came
            continue
        shown = going.get(told["id"]) or _begin(client, experiment, told)
        _add(client, shown, told["curves"])
        now[told["id"]] = shown
        status = "KILLED" if dead and told["status"] == "RUNNING" else told["status"]
        if status != "RUNNING":
            client.set_terminated(now.pop(told["id"]).run, status)
            file.unlink()
            lock_of(file).unlink(missing_ok=True)
    for record in going.keys() - now.keys():
        if client.get_run(going[record].run).info.status == "RUNNING":  # a killed stage whose next try writes to the same file
            client.set_terminated(going[record].run, "KILLED")
    return now


def _begin(client: "MlflowClient", experiment: str, told: Mapping[str, Any]) -> Shown:
    from mlflow.entities import Param

    name = f"{told['stage']} {told['name']}"
    tags = {"kind": "stage", "record": told["id"], "writer": store.writer(), "points": "{}"}
    run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    client.log_batch(run, params=[Param(rows.named(key), value) for key, value in rows.flat(told["params"])])
    print(f"{name}: shown from now on", flush=True)
    return Shown(run, {})


def _add(client: "MlflowClient", shown: Shown, curves: Mapping[str, Mapping[str, list[float]]]) -> None:
    from mlflow.entities import Metric

    now = 1000 * time.time()
    points = [
        point
        for key, curve in curves.items()
        for point in rows.series(key, curve, begin=now - 1000 * curve["seconds"][-1], first=shown.points.get(key, 0))
    ]
    if points:
        client.log_batch(shown.run, [Metric(*point) for point in points if math.isfinite(point[1])])
        shown.points |= {key: len(curve["epoch"]) for key, curve in curves.items()}
        client.set_tag(shown.run, "points", json.dumps(shown.points))


def _left(client: "MlflowClient", experiment: str) -> dict[str, Shown]:
    """What an earlier process of this project followed until it was stopped."""
    query = f"tags.kind = 'stage' AND tags.writer = '{store.writer()}' AND attributes.status = 'RUNNING'"
    found = client.search_runs([experiment], query)
    return {run.data.tags["record"]: Shown(run.info.run_id, json.loads(run.data.tags["points"])) for run in found}
