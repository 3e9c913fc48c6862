"""The settings that a row shows: those that people compare runs by. All of them are in its artifacts."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.track.naming import mlflow_name

MOST = 30
OF_DATA = ("source", "size", "square", "noise")
OF_PROTOCOL = ("shots", "fraction", "rest", "label_noise", "class_overlap")
OF_TRAINING = (
    *("epochs", "steps", "batch_size", "optimizer", "lr", "weight_decay", "schedule"),
    *("class_balance", "select"),
)
# settings that do nothing at these values: a row without them says more
WITHOUT_EFFECT: Mapping[str, Any] = {
    "fraction": 1.0,
    "label_noise": 0.0,
    "class_overlap": "all",
    "epochs": 0,
    "steps": 0,
    "class_balance": "none",
    "select": "accuracy",
    "square": "crop",
    "noise": 0.0,
}


def of_run(params: Mapping[str, Any], data: Mapping[str, Any], teacher_net: str) -> dict[str, str]:
    """Of the parameters of a run's stage `distill`, and of the data."""
    run = params["run"]
    method = {key: value for key, value in run["method"].items() if key != "name"}
    found = {
        "method": run["method"]["name"],
        "student": params["student"]["net"],
        "teacher": run["teacher"],
        "teacher_net": teacher_net,
        "seeds": run["seeds"],
        **_some(params.get("protocol", {}), OF_PROTOCOL),
        **_of_training(params),
        **dict(flatten(_set(method))),
        **dict(flatten(_set(run.get("phases", {})))),
        **_of_data(data),
    }
    return _shown(found)


def of_teacher(params: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, str]:
    # MLflow's page has one column for the net: that of the row's own network
    return _shown(
        {
            "method": "teacher",
            "student": params["teacher"]["net"],
            **_of_training(
                {"train": params["teacher"].get("train", {}), "augment": params.get("augment", {})}
            ),
            **_of_data(data),
        }
    )


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_training(params: Mapping[str, Any]) -> dict[str, Any]:
    augment = params.get("augment", {})
    return _some(params.get("train", {}), OF_TRAINING) | (
        {"augment": augment["preset"]} if "preset" in augment else {}
    )


def _of_data(data: Mapping[str, Any]) -> dict[str, Any]:
    return {f"data_{key}": value for key, value in _some(data, OF_DATA).items()}


def _some(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: settings[name]
        for name in names
        if settings.get(name, "") != "" and settings[name] != WITHOUT_EFFECT.get(name)
    }


def _set(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are empty or switched off."""
    return {
        key: value
        for key, value in settings.items()
        if value is not False and value not in ("", {}, [], None)
    }


def _shown(found: Mapping[str, Any]) -> dict[str, str]:
    return {mlflow_name(key): as_text(value) for key, value in list(found.items())[:MOST]}
