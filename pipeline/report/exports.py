"""How good the exported files of a run are: lines of tables, under their heads."""

from typing import Any

from pipeline.evaluation.predictions import AllPredictions, answered
from pipeline.records.results import RunResults
from pipeline.report.words import percent

PARITY = ["format", "file", "seed", "largest difference", "relative difference", "same top-1 %", "images"]
INT8 = ["file", "accepted", "points lost", "95 % interval", "same top-1 %", "signal to noise, dB", "images"]
CALIBRATION = ["file", "temperature", "ECE % before", "after", "images"]
THRESHOLDS = ["least probability", "answered %", "accuracy of these %"]
SPEED = ["variant", "format", "batch", "median ms", "p95 ms", "images/s", "MB"]


def parity(run: RunResults) -> list[list[str]]:
    """A line for each file that computes what the trained network computes."""
    lines = []
    for form, facts in _formats(run).items():
        if same := facts.get("parity"):
            differences = [f"{same['max_abs']:.2g}", f"{same['rel']:.2g}"]
            numbers = [*differences, percent(same["agreement"]), f"{same['images']}"]
            lines.append([form, facts["file"], f"{run.exported_seed}", *numbers])
    return lines


def int8(run: RunResults) -> list[list[str]]:
    """A line for the int8 file, if there is one: how it differs from the float file on test images."""
    lines = []
    for facts in _formats(run).values():
        if tested := facts.get("test"):
            accepted = "yes" if facts["accepted"] else f"no: {'; '.join(facts['refused'])}"
            lost = [f"{tested['drop']:.2f}", f"{tested['low']:.2f} to {tested['high']:.2f}"]
            same = [percent(tested["agreement"]), f"{tested['snr_db']:.1f}", f"{tested['images']}"]
            lines.append([facts["file"], accepted, *lost, *same])
    return lines


def calibration(run: RunResults) -> list[list[str]]:
    """A line for each file whose probabilities are calibrated, measured on test images."""
    facts = _calibration(run)
    lines = []
    for name, what in (("float", "float files"), ("int8", "int8")):
        if name in facts:
            errors = [percent(facts[name][key]) for key in ("ece_before", "ece_after")]
            lines.append([what, f"{facts['temperature']:g}", *errors, f"{facts[name]['images']}"])
    return lines


def thresholds(run: RunResults, predictions: AllPredictions | None) -> list[list[str]]:
    """A line for each threshold: what it costs and saves to answer only above it, on test images.

    With calibrated probabilities if the bundle has them, and else with those of the stored predictions.
    """
    found = _calibration(run).get("float", {}).get("thresholds", {})
    if not found and predictions is not None:
        found = answered(predictions.students[run.exported_seed], predictions.labels)
    return [[level, percent(facts["answered"]), percent(facts["accuracy"])] for level, facts in found.items()]


def thresholds_note(run: RunResults) -> str:
    how = (
        "calibrated" if _calibration(run).get("found") else "not calibrated (export.calibrate_probabilities)"
    )
    return (
        "What `predict --min-confidence` costs and saves, on the test images: the share of the images that "
        "get a class, and how many of these classes are right. The other images are `unknown`. The "
        f"probabilities are {how}."
    )


def speed(run: RunResults) -> list[list[str]]:
    """A line for each variant, format and batch size that was timed."""
    numbers = {"median_ms": ".3f", "p95_ms": ".3f", "images_per_s": ".0f", "size_mb": ".2f"}
    return [
        [
            row["variant"],
            row["format"],
            f"{row['batch']}",
            *(format(row[key], form) for key, form in numbers.items()),
        ]
        for row in run.records["benchmark"].details["rows"]
    ]


def _calibration(run: RunResults) -> dict[str, Any]:
    facts: dict[str, Any] = run.records["export"].details.get("calibration", {})
    return facts


def _formats(run: RunResults) -> dict[str, dict[str, Any]]:
    formats: dict[str, dict[str, Any]] = run.records["export"].details["formats"]
    return formats
