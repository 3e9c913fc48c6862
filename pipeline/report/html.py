"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.evaluation.predictions import AllPredictions, missed, outcomes
from pipeline.records.results import Results, RunResults
from pipeline.report import costs, exports, figures, pictures, tables
from pipeline.report.confusions import confusion
from pipeline.report.next_steps import next_steps
from pipeline.report.run_gains import gains_on_images, gains_over_baseline, load_all_predictions
from pipeline.report.words import (
    BY_CLASS,
    GAINS,
    SELECTED,
    UNBALANCED,
    caveats,
    costs_note,
    environments,
    file_gain,
    images_learned,
    is_measured_as_file,
    left_out,
    legend,
    on_validation,
    percent,
    points,
    seeds_per_run,
    verdict,
    warnings,
    why_this_seed,
)

HERE = Path(__file__).parent
CLASSES_DRAWN = 20  # as rows of pictures, and as a matrix of numbers
CLASSES_OPEN = 30  # bars; if there are more, half as many from each end, and all of them folded
PANELS_OPEN = 12
MISSED_SHOWN = 24
IMAGES_OF_A_CLASS = 8
CLASSES_IN_HEAT = 1000  # as a pixel each
HEAT = (64, 122, 216)


class KeyFigure(NamedTuple):
    what: str
    value: str
    beside: str


class Missed(NamedTuple):
    """A test image that the teacher gets right and the student wrong."""

    picture: str
    actual: str
    teacher_confidence: str
    predicted: str
    confidence: str


class Association(NamedTuple):
    """How much each map of the student learns from each map of the teacher."""

    run: str
    student_maps: list[str]
    teacher_maps: list[str]
    cells: list[list[tuple[float | None, float]]]  # value, and share of the largest value


def html_report(results: Results, *, records: Path, data: Path, bundles: Path, views: Path) -> str:
    """`records` also holds files that stages wrote beside their records (predictions, pictures); `data` holds
    the prepared images, and `views` is the picture of what training sees of some of them."""
    predictions = load_all_predictions(results, records)
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(
        "report.html"
    ).render(
        css=Markup((HERE / "report.css").read_text()),  # noqa: S704  our own file
        results=results,
        manifest=results.prepare.details["manifest"],
        made=max(record.finished for record in results.records)[:16].replace("T", " "),
        bundle=bundles / results.best.name,
        next_steps=[_with_code(step) for step in next_steps(results, str(bundles / results.best.name))],
        **_answer(results, predictions),
        **_students(results, predictions),
        **_data(results, data, views),
        **_errors(results, predictions, data),
        **_training(results),
        **_methods(results, records),
        **_provenance(results),
    )


def _with_code(text: str) -> Markup:
    """With what stands between backticks as code."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if i % 2 else Markup.escape(part)
        for i, part in enumerate(parts)
    )


def _answer(results: Results, predictions: Mapping[str, AllPredictions]) -> dict[str, Any]:
    best, others = results.best, results.ranked[1:]
    why = f"It is the best of {len(results.runs)} runs on validation: {on_validation(results, best)}"
    why += f", ahead of {others[0].name} with {on_validation(results, others[0])}." if others else "."
    origin = "" if best.method == "ce" else f" that learned from {best.teacher} with method {best.method}"
    text = verdict(results)
    if of_file := gains_on_images(results, best, predictions):
        text += f" {file_gain(of_file[1])}"
    answer = {
        "name": best.name,
        "what": f"a {best.student}{origin} (training images: {images_learned(best.records['distill'])})",
        "why": why,
        "verdict": text[0].upper() + text[1:],
    }
    return {"answer": answer, "key_figures": _key_figures(results)}


def _key_figures(results: Results) -> list[KeyFigure]:
    best, gain = results.best, gains_over_baseline(results).get(results.best.name)
    scores, speed = best.records["evaluate"].metrics, best.records["benchmark"].metrics
    # from the same run as in the table
    of_teacher = (results.run_of_teacher(best.teacher) or best).records["benchmark"].details["teacher"]
    beside = ["one seed"]
    if scores["n"] > 1:
        beside = [f"mean of {scores['n']:.0f} seeds, spread {percent(scores['spread'])}"]
    if best.baseline is not None:
        beside.append(f"baseline {percent(results.runs[best.baseline].mean_accuracy)} %")
    beside.append(f"teacher {percent(best.records['evaluate'].details['teacher']['accuracy'])} %")
    if results.is_unbalanced:
        beside += [
            f"{name}: {percent(scores.get(key))} %" for key, name in SELECTED.items() if key in BY_CLASS
        ]
    found = [
        _file_figure(results),
        KeyFigure("Accuracy of the method", f"{percent(scores['accuracy'])} %", " · ".join(beside)),
    ]
    if gain is not None:
        interval = "one seed gives no interval"
        if gain.low is not None and gain.high is not None:
            pairs = "paired by seed" if gain.paired else "unpaired"
            interval = f"95 % interval {points(gain.low)} to {points(gain.high)}, {pairs}"
        found.append(KeyFigure("Gain of the method", f"{points(gain.mean)} points", interval))
    size = f"{speed['parameters_m']:.3f} M parameters · teacher {of_teacher['size_mb']:.2f} MB"
    where = "" if is_measured_as_file(results, best.teacher) else " in PyTorch"
    latency = f"one thread · teacher {of_teacher['latency_ms']:.3f} ms{where}"
    return [
        *found,
        KeyFigure("Size", f"{speed['size_mb']:.2f} MB", size),
        KeyFigure("One image on the CPU", f"{speed['latency_ms']:.3f} ms", latency),
    ]


def _file_figure(results: Results) -> KeyFigure:
    best = results.best
    found = best.file_accuracy
    beside = [
        f"95 % interval {percent(found.low)} to {percent(found.high)} on {found.images:,} test images",
        *([] if best.int8_accuracy is None else [f"int8 {percent(best.int8_accuracy)} %"]),
        why_this_seed(results, best),
    ]
    return KeyFigure("Accuracy of the file", f"{percent(found.value)} %", " · ".join(beside))


def _students(results: Results, predictions: Mapping[str, AllPredictions]) -> dict[str, Any]:
    chart = figures.network_chart(results)
    return {
        "networks": chart,
        "beyond": any("→" in row.strip for row in chart.rows),
        "results_table": tables.all_networks(results),
        "results_note": " ".join(
            [legend(results), costs_note(results), *([UNBALANCED] if results.is_unbalanced else [])]
        ),
        "has_intervals": seeds_per_run(results) != [1],
        "selected": SELECTED[results.select],
        "gains": tables.gains(results, predictions),
        "gains_note": GAINS,
        "relative": tables.relative_improvements(results),
        "trade_offs": figures.trade_offs(results),
        "bars": figures.class_bars(results),
        "bars_open": CLASSES_OPEN,
    }


def _data(results: Results, data: Path, views: Path) -> dict[str, Any]:
    return {
        "views": pictures.sheet_file(views),
        "left_out": left_out(results.prepare.details["manifest"]),
        "sheet": _sheet(results, data),
        "counts": tables.image_counts(results),
    }


def _sheet(results: Results, data: Path) -> list[tuple[str, str, list[str]]]:
    """The classes: name, number of training images, and a few of them."""
    manifest, images = results.prepare.details["manifest"], pictures.open_images(data)
    if images is None:
        return []
    names = manifest["classes"][:CLASSES_DRAWN]
    rows = pictures.first_of_each(data, manifest["splits"]["train"], len(names), IMAGES_OF_A_CLASS)
    return [
        (
            name,
            f"{manifest['per_class']['train'].get(name, 0):,}",
            [pictures.picture(images[row]) for row in rows[i]],
        )
        for i, name in enumerate(names)
        if len(rows[i])
    ]


def _errors(results: Results, predictions: Mapping[str, AllPredictions], data: Path) -> dict[str, Any]:
    best = results.best
    of_best = predictions.get(best.name)
    compared = {
        name: predictions[name] for name in (best.name, best.baseline) if name and name in predictions
    }
    return {
        "outcomes": _outcomes(best, of_best) if of_best else [],
        "missed": _missed(best, of_best, data) if of_best else [],
        "confusion": _confusion(best, of_best),
        "frequent_errors": tables.frequent_errors(best),
        "calibration": figures.calibration(compared, results),
        "calibration_bins": figures.BINS,
        "calibration_errors": tables.calibration_errors(results),
        "thresholds": tables.thresholds(best, of_best),
        "thresholds_note": exports.thresholds_note(best),
    }


def _outcomes(best: RunResults, predictions: AllPredictions) -> list[tuple[str, int, str]]:
    counts = outcomes(predictions, best.exported_seed)
    return [(what, n, f"{percent(n / sum(counts.values()))} %") for what, n in counts.items()]


def _missed(best: RunResults, predictions: AllPredictions, data: Path) -> list[Missed]:
    """Those that the exported student is most confident about."""
    images, names = pictures.open_images(data), best.records["evaluate"].details["classes"]
    if images is None:
        return []
    student, teacher = predictions.students[best.exported_seed], predictions.teacher
    return [
        Missed(
            picture=pictures.picture(images[predictions.rows[i]]),
            actual=names[predictions.labels[i]],
            teacher_confidence=f"{teacher.confidence[i]:.0%}",
            predicted=names[student.label[i]],
            confidence=f"{student.confidence[i]:.0%}",
        )
        for i in missed(predictions, best.exported_seed)[:MISSED_SHOWN]
    ]


def _confusion(best: RunResults, predictions: AllPredictions | None) -> dict[str, Any]:
    """Numbers, or a picture if there are too many classes to read them."""
    names, counts, shares = confusion(best, predictions, CLASSES_IN_HEAT)
    found = {"names": names, "heat": "", "cells": [], "of": len(best.per_class)}
    if len(names) > CLASSES_DRAWN:
        return found | {"heat": pictures.heat_map(shares, HEAT)}
    cells = [
        [(int(n), float(share)) for n, share in zip(*row, strict=True)]
        for row in zip(counts, shares, strict=True)
    ]
    return found | {"cells": cells}


def _training(results: Results) -> dict[str, Any]:
    found = costs.training_costs(results)
    return {
        "panels": figures.validation_curves(results),
        "panels_open": PANELS_OPEN,
        "losses": figures.loss_curves(results),
        "training_costs": tables.training_costs(found),
        "training_costs_note": costs.note(found),
        "planned": tables.planned(results),
    }


def _methods(results: Results, records: Path) -> dict[str, Any]:
    return {
        "warnings": warnings(results),
        "probes": tables.linear_probes(results),
        "similarities": tables.similarities(results),
        "transfers": tables.transfers(results),
        "method_pictures": _method_pictures(results, records),
        "associations": _associations(results),
        "shares": tables.gradient_shares(results),
        "notes": tables.notes(results),
    }


def _method_pictures(results: Results, records: Path) -> list[tuple[str, str, str]]:
    """Run, caption and picture of each PNG file in the folders that stages wrote beside their records."""
    found = []
    for run in results.ranked:
        for stage, record in run.records.items():
            captions: dict[str, str] = record.details.get("pictures", {})
            order = {name: place for place, name in enumerate(captions)}
            files = sorted((records / stage / run.name).glob("*.png"))
            for file in sorted(files, key=lambda file: order.get(file.name, len(order))):
                caption = captions.get(file.name, file.stem.replace("_", " ").replace("-", " "))
                found.append((run.name, caption, pictures.whole_file(file)))
    return found


def _associations(results: Results) -> list[Association]:
    """Of the methods that log how much each map learns from each, unless there is a picture of it."""
    found = []
    for run in results.ranked:
        weights = {
            tuple(pair.split("~", 1)): value
            for pair, value in figures.last_values(run.records["distill"], "note/").items()
            if "~" in pair
        }
        has_picture = run.analysis and "associations.png" in run.analysis.details["pictures"]
        if weights and not has_picture:
            of_student, of_teacher = (list(dict.fromkeys(pair[side] for pair in weights)) for side in (0, 1))
            most = max(max(weights.values()), 1e-9)
            cells = [
                [(weights.get((s, t)), max(0.0, weights.get((s, t), 0.0)) / most) for t in of_teacher]
                for s in of_student
            ]
            found.append(Association(run.name, of_student, of_teacher, cells))
    return found


def _provenance(results: Results) -> dict[str, Any]:
    marked = results.best.name
    return {
        "exports": tables.export_tables([results.best], marked),
        "other_exports": tables.export_tables(results.ranked[1:], marked),
        "settings": tables.settings(results),
        "stages": tables.stages(results),
        "environments": environments(results),
        "caveats": caveats(results),
    }
