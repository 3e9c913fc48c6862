"""All files that the report stage writes."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.files import atomic_file, atomic_folder
from pipeline.records.record import write_metrics
from pipeline.records.results import Results, load_results
from pipeline.report.html import html_report
from pipeline.report.markdown import markdown_report
from pipeline.report.plots import write_plots
from pipeline.report.run_gains import gains_over_baseline, load_all_predictions
from pipeline.report.terminal import table
from pipeline.report.words import BY_CLASS


def write_report(
    records: Path,
    out_dir: Path,
    plots_dir: Path,
    metrics_dir: Path,
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
    with atomic_folder(metrics_dir) as folder:
        for name in results.runs:
            write_metrics(folder / f"{name}.json", metrics_of(results, name), digits=5)
    return results


def metrics_of(results: Results, name: str) -> dict[str, float]:
    """What `dvc metrics show` says of a run: at most ten numbers, by the names that MLflow shows."""
    run, gain = results.runs[name], gains_over_baseline(results).get(name)
    tested, speed = run.records["evaluate"].metrics, run.records["benchmark"].metrics
    found = {
        "accuracy_test": run.file_accuracy.value,
        "accuracy_test_int8": run.int8_accuracy,
        "accuracy_test_mean": run.mean_accuracy,
        "accuracy_test_spread": tested["spread"] if tested["n"] > 1 else None,
        "gain_points": 100 * gain.mean if gain else None,
        "latency_ms": speed["latency_ms"],
        "score_val": results.value(run),
        "size_mb": speed["size_mb"],
    }
    by_class = {f"{key}_test": run.file_scores.get(key) for key in BY_CLASS} if results.is_unbalanced else {}
    return {key: value for key, value in (found | by_class).items() if value is not None}
