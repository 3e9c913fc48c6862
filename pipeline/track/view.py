"""Links into MLflow's page, which it calls shared views: rows to compare, and what trains right now."""

import base64
import json
import time
import zlib
from typing import Any

from pipeline.track import address, database

COLUMNS = [  # in the order that MLflow shows them in; a page of 1440 pixels has room for these
    *(f"metrics.`{name}`" for name in ("accuracy_test", "latency_ms", "size_mb")),
    *(f"params.`{name}`" for name in ("method", "student")),
    "tags.`gain`",  # with its interval
]
OVERVIEW, GENERATED = "Overview", "Model metrics"  # sections of charts; MLflow fills the second


def _chart(name: str, kind: str, **content: Any) -> dict[str, Any]:
    common = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return {"uuid": name, "type": kind, "metricSectionId": OVERVIEW, "displayName": name, **common, **content}


def _line(name: str, metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "lineSmoothness": 0}
    return _chart(name, "LINE", metricKey=metric, selectedMetricKeys=[metric], range={}, **axes)


def _scatter(name: str, x: str, y: str) -> dict[str, Any]:
    axes = {axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", x), ("yaxis", y))}
    return _chart(name, "SCATTER", **axes)


def _charts(*charts: dict[str, Any]) -> dict[str, Any]:
    """The charts that a view opens on. MLflow adds the others below them."""
    sections = [
        {"uuid": name, "name": name, "display": name == OVERVIEW, "isReordered": False, "deleted": False}
        | {"isGenerated": name == GENERATED}
        for name in (OVERVIEW, GENERATED)
    ]
    return {"compareRunCharts": list(charts), "compareRunSections": sections}


ACCURACY = _line("Accuracy on validation by images shown", "accuracy_val")
LOSS = _line("Training loss by images shown", "loss")
DIFFERENCES = _chart(
    "What differs",
    "DIFFERENCE",
    chartName="What differs",
    compareGroups=["Parameters", GENERATED],
    showChangeFromBaseline=True,
    showDifferencesOnly=True,
    baselineColumnUuid="",
)
VIEWS: dict[str, dict[str, Any]] = {
    "students": {
        # rows without the trainings below them, which MLflow would list among the rows
        "searchFilter": "tags.pipeline_key LIKE '%' AND attributes.status = 'FINISHED'",
        "orderByKey": "metrics.`score_val`",  # on validation: the test images decide nothing
        "orderByAsc": False,
        "selectedColumns": COLUMNS,
        **_charts(
            _scatter("Accuracy of the file by latency", "latency_ms", "accuracy_test"),
            ACCURACY,
            DIFFERENCES,
        ),
    },
    "training": {
        "searchFilter": "tags.kind = 'stage' AND attributes.status = 'RUNNING'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": ["params.`method`"],
        **_charts(ACCURACY, LOSS),
    },
}
MODES = {"students": "", "training": "&compareRunsMode=CHART"}
NOTE = (
    "Small students that learned from big teachers. A row is a run of params.yaml, or a teacher; its page "
    "links the trainings below it. `accuracy_test` is the accuracy of the exported file on the test images, "
    "`gain` what its method gains over the baseline, in points. The best on validation comes first. "
    "docs/tracking.md explains the rest.\n"
)


def view_link(port: int, view: str = "students") -> str:
    """A link to one of VIEWS, at the server of MLFLOW_TRACKING_URI or else at a port of this machine."""
    with database.explained_errors():
        client, experiment = database.open_experiment()
        packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(VIEWS[view]).encode())).decode()
        now = round(1000 * time.time())  # MLflow's page ignores a view whose time is not a number
        content = {"name": view.capitalize(), "createdAt": now, "updatedAt": now, "state": packed}
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{view}", json.dumps(content))
        if (
            "mlflow.note.content" not in client.get_experiment(experiment).tags
        ):  # a person may have changed it
            client.set_experiment_tag(experiment, "mlflow.note.content", NOTE)
    uri = database.tracking_uri()
    is_server = address.kind(uri) in address.WEB
    server = address.public(uri).rstrip("/") if is_server else f"http://127.0.0.1:{port}"
    query = f"workflowType=machine_learning&viewStateShareKey={view}{MODES[view]}"
    return f"{server}/#/experiments/{experiment}/runs?{query}"
