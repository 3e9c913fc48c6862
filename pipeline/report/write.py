"""Everything that the report stage leaves behind."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline import predictions
from pipeline.checkpoint import atomic_file
from pipeline.report.card import card
from pipeline.report.page import page
from pipeline.report.plots import plots
from pipeline.report.results import Results, gains, load
from pipeline.report.terminal import table


def write(
    records: Path,
    out_dir: Path,
    plots_dir: Path,
    metrics_file: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    bundles: Path,
    data: Path,
    analysed: Collection[str] = (),
) -> Results:
    """`report.html`, `report.md` and `table.txt` in `out_dir`, the data of the plots, and as DVC metrics gains and what to choose by."""
    results = load(records, runs, teachers, analysed=analysed)
    said = predictions.load(records / "evaluate" / f"{results.best.name}.npz")
    links = {"sheet": os.path.relpath(data / "sheet.png", out_dir), "bundles": os.path.relpath(bundles, out_dir)}
    texts = {
        "report.html": page(results, records=records, data=data, bundles=bundles),
        "report.md": card(results, said=said, **links),
        "table.txt": table(results, bundles=bundles, report=out_dir / "report.html"),
    }
    for name, text in texts.items():
        with atomic_file(out_dir / name) as file:
            file.write_text(text, encoding="utf-8")
    plots(results, plots_dir)
    with atomic_file(metrics_file) as file:
        told = {"gain": {name: gain.mean for name, gain in gains(results).items()}}
        told["validation"] = {name: run.validation for name, run in results.runs.items()}
        file.write_text(json.dumps(told, indent=1) + "\n")
    return results
