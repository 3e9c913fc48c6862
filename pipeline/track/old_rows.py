"""Rows that earlier versions wrote get the names of today beside their own, so that lists show all rows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS = {  # old name: new name, factor. What the file itself scored was not in old rows.
    "best/by_val": ("score_val", 1.0),
    "best/top1": ("accuracy_test_mean", 1.0),
    "best/spread": ("accuracy_test_spread", 1.0),
    "best/gain": ("gain_points", 100.0),
    "best/latency_ms": ("latency_ms", 1.0),
    "best/size_mb": ("size_mb", 1.0),
    "best/params_m": ("parameters_millions", 1.0),
}
PARAMS = {"run.method.name": "method", "student.net": "student", "run.teacher": "teacher"}


def rename(client: "MlflowClient", experiment: str) -> None:
    """Each row once: those that have a form, or these names already, are left alone."""
    for run in client.search_runs([experiment], "metrics.`best/top1` > -1 AND tags.pipeline_key LIKE '%'"):
        if "accuracy_test_mean" not in run.data.metrics:
            _add_names(client, run)


def _add_names(client: "MlflowClient", run: "Run") -> None:
    from mlflow.entities import Metric, Param

    moment = run.info.end_time or run.info.start_time
    found = [
        (new, factor * run.data.metrics[old])
        for old, (new, factor) in METRICS.items()
        if old in run.data.metrics
    ]
    metrics = [Metric(key, round(value, 5), moment, 0) for key, value in found]
    params = [Param(new, run.data.params[old]) for old, new in PARAMS.items() if old in run.data.params]
    client.log_batch(run.info.run_id, metrics, params)
