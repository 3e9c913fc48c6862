"""Links into MLflow's page, which it calls shared views: rows to compare, and what trains right now."""

import base64
import json
import time
import zlib
from typing import Any

from pipeline.track import address, database

COLUMNS = [  # in the order that MLflow shows them in; its page has room for few
    *(f"metrics.`best/{name}`" for name in ("by_val", "gain", "latency_ms", "size_mb", "top1")),
    *(f"params.`{name}`" for name in ("run.method.name", "run.teacher", "student.net")),
    *(f"tags.`{name}`" for name in ("dvc.exp", "kind")),
]
VIEWS: dict[str, dict[str, Any]] = {
    "students": {
        "searchFilter": "tags.pipeline_key LIKE '%' AND attributes.status = 'FINISHED'",
        "orderByKey": "metrics.`best/by_val`",  # on validation: the test images decide nothing
        "orderByAsc": False,
        "selectedColumns": COLUMNS,
    },
    "training": {
        "searchFilter": "tags.kind = 'stage' AND attributes.status = 'RUNNING'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": ["params.`run.method.name`"],
    },
}
MODES = {"students": "", "training": "&compareRunsMode=CHART"}


def view_link(port: int, view: str = "students") -> str:
    """A link to one of VIEWS, at the server of MLFLOW_TRACKING_URI or else at a port of this machine."""
    with database.explained_errors():
        client, experiment = database.open_experiment()
        packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(VIEWS[view]).encode())).decode()
        now = round(1000 * time.time())  # MLflow's page ignores a view whose time is not a number
        content = {"name": view.capitalize(), "createdAt": now, "updatedAt": now, "state": packed}
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{view}", json.dumps(content))
    uri = database.tracking_uri()
    is_server = address.kind(uri) in address.WEB
    server = address.public(uri).rstrip("/") if is_server else f"http://127.0.0.1:{port}"
    query = f"workflowType=machine_learning&viewStateShareKey={view}{MODES[view]}"
    return f"{server}/#/experiments/{experiment}/runs?{query}"
