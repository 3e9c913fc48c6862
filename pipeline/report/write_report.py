"""All files that the report stage writes."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.files import atomic_file
from pipeline.records.results import Results, load_results
from pipeline.report.html import html_report
from pipeline.report.markdown import markdown_report
from pipeline.report.plots import write_plots
from pipeline.report.run_gains import gains_over_baseline, load_all_predictions
from pipeline.report.terminal import table


def write_report(
    records: Path,
    out_dir: Path,
    plots_dir: Path,
    metrics_file: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    bundles: Path,
    data: Path,
    views: Path,
    analysed: Collection[str] = (),
) -> Results:
    """Write three reports into `out_dir` (HTML, Markdown, the table), the plots' data and metrics for DVC."""
    results = load_results(records, runs, teachers, analysed=analysed)
    predictions = load_all_predictions(results, records)
    links = {
        "sheet": os.path.relpath(data / "sheet.png", out_dir),
        "bundles": os.path.relpath(bundles, out_dir),
        "views": os.path.relpath(views, out_dir) if views.is_file() else "",
    }
    texts = {
        "report.html": html_report(results, records=records, data=data, bundles=bundles, views=views),
        "report.md": markdown_report(
            results, predictions=predictions, bundle=str(bundles / results.best.name), **links
        ),
        "table.txt": table(results, bundles=bundles, report=out_dir / "report.html"),
    }
    for name, text in texts.items():
        with atomic_file(out_dir / name) as file:
            file.write_text(text, encoding="utf-8")
    write_plots(results, plots_dir, predictions)
    metrics = {
        "gain": {name: gain.mean for name, gain in gains_over_baseline(results).items()},
        "validation": {name: run.validation for name, run in results.runs.items()},
    }
    with atomic_file(metrics_file) as file:
        file.write_text(json.dumps(metrics, indent=1) + "\n")
    return results
