"""How good the exported files of a run are: lines of tables, under their heads."""

from typing import Any

from pipeline.records.results import RunResults
from pipeline.report.words import percent

PARITY = ["format", "file", "seed", "largest difference", "relative difference", "same top-1 %", "images"]
INT8 = ["file", "accepted", "points lost", "95 % interval", "same top-1 %", "signal to noise, dB", "images"]
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


def speed(run: RunResults) -> list[list[str]]:
    """A line for each variant, format and batch size that was timed."""
    numbers = ("median_ms", "p95_ms", "images_per_s", "size_mb")
    return [
        [row["variant"], row["format"], f"{row['batch']}", *(f"{row[key]:.2f}" for key in numbers)]
        for row in run.records["benchmark"].details["rows"]
    ]


def _formats(run: RunResults) -> dict[str, dict[str, Any]]:
    formats: dict[str, dict[str, Any]] = run.records["export"].details["formats"]
    return formats
