"""The tables of the HTML report."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.analysis.improvement import average_relative_improvement, relative_improvement
from pipeline.evaluation.predictions import AllPredictions
from pipeline.records.results import Results, RunResults
from pipeline.report import confusions, costs, exports
from pipeline.report.costs import Cost
from pipeline.report.figures import last_values
from pipeline.report.run_gains import compare_with_best, gains_on_images, gains_over_baseline
from pipeline.report.words import header, images_learned, interval, percent, points, result_rows


class Table(NamedTuple):
    """The first column names the row. The first `text_columns` are text, and the others are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    marked: str = ""  # the name of a row that stands out


def all_networks(results: Results) -> Table:
    """The table of the terminal, with accuracy on validation, and the best student first."""
    lines = {line[0][2:]: line[1:] for line in result_rows(results)}
    teachers = [f"{name} (teacher)" for name in results.teachers]
    rows = [[name, *lines[name], ""] for name in teachers]
    rows += [[run.name, *lines[run.name], percent(run.validation)] for run in results.ranked]
    head = [*header(results), "validation %"]
    return Table("Every network in numbers", head, rows, text_columns=2, marked=results.best.name)


def gains(results: Results, predictions: Mapping[str, AllPredictions]) -> Table | None:
    """Over the baseline: of the method and of the file, with the intervals for other seeds and images."""
    over_seeds, rows = gains_over_baseline(results), []
    for run in results.ranked:
        if run.name not in over_seeds:
            continue
        gain = over_seeds[run.name]
        seeds = "" if gain.low is None or gain.high is None else f"{points(gain.low)} to {points(gain.high)}"
        rows.append([run.name, points(gain.mean), seeds, *_gains_on_images(results, run, predictions)])
    head = ["", "method, points", "method, other seeds", "method, other images", "file, points"]
    head.append("file, other images")
    return Table("Gains over the baseline, with 95 % intervals", head, rows) if rows else None


def _gains_on_images(
    results: Results, run: RunResults, predictions: Mapping[str, AllPredictions]
) -> list[str]:
    found = gains_on_images(results, run, predictions)
    if found is None:
        return ["", "", ""]
    method, file = found
    return [interval(method), points(file.mean), interval(file)]


def relative_improvements(results: Results) -> Table | None:
    """Of the best run over every other, and on average (SemCKD, Eq. 17)."""
    compared = compare_with_best(results)
    if not compared:
        return None
    rows = [
        [run.name, percent(over.best), percent(over.other), f"{100 * relative_improvement(*over):+.0f}"]
        for run, over in compared
    ]
    mean = average_relative_improvement([over for _, over in compared])
    rows.append(["mean", "", "", f"{100 * mean:+.0f}"])
    head = ["", "accuracy of the best %", "accuracy %", "relative improvement, %"]
    return Table(f"Relative improvement of {results.best.name} over the other methods", head, rows)


def image_counts(results: Results) -> Table:
    manifest = results.prepare.details["manifest"]
    splits = [split for split in ("train", "val", "test") if split in manifest["splits"]]
    rows = [
        [name, *(f"{manifest['per_class'][split].get(name, 0)}" for split in splits)]
        for name in manifest["classes"]
    ]
    rows.append(["all", *(f"{manifest['splits'][split]}" for split in splits)])
    return Table("Images by class and split", ["", *splits], rows)


def frequent_errors(best: RunResults) -> Table:
    rows = [
        [pair.actual, pair.predicted, f"{pair.images}", percent(pair.share)]
        for pair in confusions.frequent_errors(best, 10)
    ]
    head = ["class", "predicted as", "images", "% of the class"]
    return Table("The most frequent errors", head, rows, text_columns=2)


def calibration_errors(results: Results) -> Table:
    rows = []
    for name in results.teachers:
        if run_of_teacher := results.run_of_teacher(name):
            scores = run_of_teacher.records["evaluate"].details["teacher"]
            rows.append([f"{name} (teacher)", percent(scores["ece"])])
    rows += [[run.name, percent(run.records["evaluate"].metrics["ece"])] for run in results.ranked]
    head = ["", "ECE %, mean over seeds"]
    return Table("Expected calibration error of every network", head, rows, marked=results.best.name)


def training_costs(found: Sequence[Cost]) -> Table:
    """Without the columns that are empty in every row."""
    head, rows = ["", *costs.HEADER], [[cost.name, *costs.cells(cost)] for cost in found]
    filled = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    return Table("Cost of training", [head[i] for i in filled], [[row[i] for i in filled] for row in rows])


def linear_probes(results: Results) -> Table | None:
    """Accuracy of a linear classifier on the student's embedding, and of the student (SRM, table 2)."""
    columns = {
        "probe_before": "linear probe before distillation",
        "probe_after": "linear probe after",
        "layer_before": "60 epochs of a linear layer before",
        "layer_after": "60 epochs after",
        "whole_network": "whole network after",
    }
    rows = _rows_of_analyses(results, lambda metrics: [_with_spread(metrics, name) for name in columns])
    return Table("Accuracy on validation, %", ["", *columns.values()], rows) if rows else None


def similarities(results: Results) -> Table | None:
    """SM-score and CKA of the maps that a method matches."""

    def cells(metrics: Mapping[str, float]) -> list[str]:
        names = ("sm_score", "cka") if "cka" in metrics else ()
        return [_with_spread(metrics, name, scale=1) for name in names]

    rows = _rows_of_analyses(results, cells)
    head = ["", "SM-score, logarithm", "CKA"]
    return Table("The pairs of maps that the method matches", head, rows) if rows else None


def transfers(results: Results) -> Table | None:
    names = ("transfer_before", "transfer_after", "transfer_teacher")
    rows = []
    for run in results.ranked:
        if run.analysis and "transfer" in run.analysis.details:
            other, metrics = run.analysis.details["transfer"], run.analysis.metrics
            source = other["root"] if other["source"] in ("folder", "manifest") else other["source"]
            rows.append([run.name, source, *(_with_spread(metrics, name) for name in names)])
    title = "Linear classifiers on other images: accuracy on their test images, %"
    head = ["", "other images", "before distillation", "after", "teacher"]
    return Table(title, head, rows, text_columns=2) if rows else None


def gradient_shares(results: Results) -> Table | None:
    """How much of the student's gradient each term of a loss has at the end."""
    found = {run.name: last_values(run.records["distill"], "share of ") for run in results.ranked}
    terms = sorted({term for shares in found.values() for term in shares})
    rows = [
        [name, *(percent(shares.get(term)) for term in terms)] for name, shares in found.items() if shares
    ]
    return (
        Table("Share of the student's gradient by term at the end, %", ["", *terms], rows) if rows else None
    )


def notes(results: Results) -> Table | None:
    """The other values that methods log. Those with `~` in their names are the matrices of associations."""
    rows = []
    for run in results.ranked:
        for stage in ("pretrain", "distill"):
            values = last_values(run.records[stage], "note/")
            rows += [
                [run.name, stage, what, f"{value:.4g}"] for what, value in values.items() if "~" not in what
            ]
    title, head = "What the methods log: last values, mean over seeds", ["", "stage", "what", "value"]
    return Table(title, head, rows, text_columns=3) if rows else None


def thresholds(best: RunResults, predictions: AllPredictions | None) -> Table | None:
    """What it costs and saves to say `unknown` below a probability."""
    rows = exports.thresholds(best, predictions)
    return Table(f"Answers of {best.name} by least probability", exports.THRESHOLDS, rows) if rows else None


def export_tables(runs: Sequence[RunResults], marked: str) -> list[Table]:
    """Parity, int8 and calibration if there are, and speed."""
    parts: list[tuple[str, list[str], Callable[[RunResults], list[list[str]]]]] = [
        ("Exported files compared with the trained network", exports.PARITY, exports.parity),
        ("The int8 file compared with the float file, on test images", exports.INT8, exports.int8),
        ("Calibrated probabilities, on test images", exports.CALIBRATION, exports.calibration),
        ("Speed side by side, in turns: compare within this table only", exports.SPEED, exports.speed),
    ]
    tables = []
    for title, head, lines in parts:
        if rows := [[run.name, *line] for run in runs for line in lines(run)]:
            tables.append(Table(title, ["", *head], rows, text_columns=3, marked=marked))
    return tables


def settings(results: Results) -> Table:
    rows = []
    for run in results.ranked:
        method = {key: value for key, value in run.params["run"]["method"].items() if key != "name"}
        text = json.dumps({**method, "protocol": run.params["protocol"]}, ensure_ascii=False)
        seeds = ", ".join(map(str, run.accuracy))
        images = images_learned(run.records["distill"])
        names = [run.name, run.teacher, run.student, run.method]
        rows.append([*names, Markup("<code>{}</code>").format(text), seeds, images])
    head = ["", "teacher", "student", "method", "settings", "seeds", "images"]
    return Table("Settings of each run", head, rows, text_columns=5, marked=results.best.name)


def planned(results: Results) -> Table | None:
    """What `make plan` expected of each kind of stage, beside what it took."""
    known = costs.planned_and_taken(results)
    if not known:
        return None
    rows = [[stage, f"{expected:.0f}", f"{took:.0f}"] for stage, (expected, took) in known.items()]
    rows.append(["all", *(f"{sum(column):.0f}" for column in zip(*known.values(), strict=True))])
    return Table("What the plan expected, and what it took", ["", "planned, s", "took, s"], rows)


def stages(results: Results) -> Table:
    """With what the plan expected, if there was a plan when one of them ran."""
    has_plan, rows = any(map(costs.planned, results.records)), []
    for record in results.records:
        outputs = Markup(", ").join(
            Markup("{} <code>{}</code>").format(name, digest[:12]) for name, digest in record.outputs.items()
        )
        finished = record.finished[:19].replace("T", " ")
        short_id = Markup("<code>{}</code>").format(record.id[:8])
        took = [f"{record.seconds:.1f}", *([costs.planned(record)] if has_plan else [])]
        rows.append([f"{record.stage} {record.name}", short_id, finished, outputs, *took])
    head = ["", "record", "finished", "outputs", "seconds", *(["planned"] if has_plan else [])]
    return Table("Every stage that ran", head, rows, text_columns=4)


def _rows_of_analyses(results: Results, cells: Callable[[Mapping[str, float]], list[str]]) -> list[list[str]]:
    """A row for each analysed run for which there are cells."""
    found = [(run.name, cells(run.analysis.metrics)) for run in results.ranked if run.analysis]
    return [[name, *line] for name, line in found if line]


def _with_spread(metrics: Mapping[str, float], name: str, scale: float = 100) -> str:
    if name not in metrics:
        return ""
    spread = f" ± {scale * metrics[f'{name}_spread']:.2f}" if f"{name}_spread" in metrics else ""
    return f"{scale * metrics[name]:.2f}{spread}"
