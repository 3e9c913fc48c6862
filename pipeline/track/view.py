"""The comparison of all rows, and what trains now, as addresses to open."""

import base64
import json
import time
import zlib
from typing import Any
from urllib.parse import urlsplit

from pipeline.track import store

COLUMNS = [  # in the order that MLflow shows them in; the page has room for few
    *(f"metrics.`best/{name}`" for name in ("by_val", "gain", "latency_ms", "size_mb", "top1")),
    *(f"params.`{name}`" for name in ("run.method.name", "run.teacher", "student.net")),
    *(f"tags.`{name}`" for name in ("dvc.exp", "kind")),
]
VIEWS: dict[str, dict[str, Any]] = {
    "students": {
        "searchFilter": "tags.pipeline_key LIKE '%' AND attributes.status = 'FINISHED'",
        "orderByKey": "metrics.`best/by_val`",  # on validation: the test set decides nothing
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
    """The address of one of VIEWS in the UI at this port (or at the server that is set): all rows, best first, or what trains now."""
    with store.reachable():
        client, experiment = store.opened()
        packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(VIEWS[view]).encode())).decode()
        now = round(1000 * time.time())  # MLflow's page ignores a view whose time isn't a number
        content = {"name": view.capitalize(), "createdAt": now, "updatedAt": now, "state": packed}
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{view}", json.dumps(content))
    uri = store.tracking_uri()
    server = store.without_credentials(uri).rstrip("/") if urlsplit(uri).scheme in ("http", "https") else f"http://127.0.0.1:{port}"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={view}{MODES[view]}"
