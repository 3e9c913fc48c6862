"""What the exported files of a run are worth: lines of tables, under their heads."""

from pipeline.report.results import Run
from pipeline.report.words import percent

PARITY = ["format", "file", "seed", "largest difference", "of the largest logit", "same top-1 %", "images"]
INT8 = ["file", "is it good enough", "points lost", "95 % interval", "same top-1 %", "logits over error, dB", "images"]
SPEED = ["variant", "format", "batch", "median ms", "p95 ms", "images/s", "MB"]


def parity(run: Run) -> list[list[str]]:
    """A line for each file that computes what the trained network computes."""
    lines = []
    for form, written in _formats(run).items():
        if same := written.get("parity"):
            numbers = [f"{same['max_abs']:.2g}", f"{same['rel']:.2g}", percent(same["agreement"]), f"{same['images']}"]
            lines.append([form, written["file"], f"{run.exported_seed}", *numbers])
    return lines


def int8(run: Run) -> list[list[str]]:
    """The quantized file beside the float one on test images, where there is one."""
    lines = []
    for written in _formats(run).values():
        if told := written.get("test"):
            gate = "yes" if written["accepted"] else f"no: {'; '.join(written['refused'])}"
            numbers = [percent(told["agreement"]), f"{told['snr_db']:.1f}", f"{told['images']}"]
            lines.append([written["file"], gate, f"{told['drop']:.2f}", f"{told['low']:.2f} to {told['high']:.2f}", *numbers])
    return lines


def speed(run: Run) -> list[list[str]]:
    """A line for each variant, format and batch that was timed."""
    return [
        [
            row["variant"],
            row["format"],
            f"{row['batch']}",
            *(f"{row[key]:.2f}" for key in ("median_ms", "p95_ms", "images_per_s", "size_mb")),
        ]
        for row in run.records["benchmark"].details["rows"]
    ]


def _formats(run: Run) -> dict[str, dict]:
    return run.records["export"].details["formats"]
