"""The report as Markdown, to be read wherever text can be read."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.evaluation.predictions import AllPredictions, outcomes
from pipeline.records.results import Results, RunResults
from pipeline.report import costs, exports
from pipeline.report.confusions import frequent_errors
from pipeline.report.next_steps import next_steps
from pipeline.report.run_gains import gains_on_images
from pipeline.report.tables import gains as gains_table
from pipeline.report.tables import planned
from pipeline.report.words import (
    GAINS,
    UNBALANCED,
    caveats,
    costs_note,
    environments,
    file_gain,
    file_in_words,
    header,
    images_learned,
    left_out,
    legend,
    on_validation,
    percent,
    points,
    result_rows,
    verdict,
)

CLASSES_SHOWN = 20  # if there are more, half of them from each end


class _Markdown(str):
    """A cell that is Markdown already."""


def markdown_report(
    results: Results,
    *,
    predictions: Mapping[str, AllPredictions],
    bundle: str,
    sheet: str,
    bundles: str,
    views: str,
) -> str:
    """`sheet`, `views` and `bundles` are links to the pictures of the data and to the folder of the bundles.

    `bundle` is the folder of the best one as commands take it. `views` may be empty.
    """
    of_best = predictions.get(results.best.name)
    best, teachers = results.best, ", ".join(f"**{_safe(name)}**" for name in results.teachers)
    sections = [
        "# Which small student should be deployed?",
        f"Students that learned from {teachers}, compared with the baseline: the same student, trained "
        f"without a teacher. **{_safe(best.name)}** is the best on validation "
        f"({on_validation(results, best)}): {_safe(verdict(results))}{_file_gain(results, predictions)}",
        f"The file to deploy is in the bundle [{_safe(best.name)}]({bundles}/{best.name}): "
        f"{_safe(file_in_words(results, best))} Use it for images like those below, which belong to one of "
        "these classes.",
        "## What to do next",
        "\n".join(f"- {_with_code(step)}" for step in next_steps(results, bundle)),
        "## Data",
        _data(results, sheet, views),
        "## Results",
        _table([header(results), *result_rows(results)]),
        "`*` best on validation. Accuracy, gain and agreement with the teacher are on the test images. "
        f"{legend(results)} {costs_note(results)}{f' {UNBALANCED}' if results.is_unbalanced else ''}",
        *_gains(results, predictions),
        "## Runs",
        _runs(results),
        "## Gains by class",
        _classes(results),
        "## Errors of the best student",
        _errors(best, of_best),
        "## Cost of training",
        _costs(results),
        "## Exports",
        _exports(results, bundles),
        "## When the student should say unknown",
        _thresholds(results, of_best),
        "## Provenance",
        _provenance(results),
        "## How to read this report",
        _bullets(caveats(results)),
    ]
    return "\n\n".join(sections) + "\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (
        [cell if isinstance(cell, _Markdown) else _safe(cell.strip()) for cell in line] for line in lines
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def _safe(text: str) -> str:
    """A name as plain text, whatever it contains: none of it is markup, and it stays on its line."""
    return re.sub(r"([\\`*\[\]<>|~$#&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _with_code(text: str) -> str:
    """Plain text, with what stands between backticks as code."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(_code(part.strip("`")) if part.startswith("`") else _safe_part(part) for part in parts)


def _safe_part(text: str) -> str:
    """As `_safe`, with the spaces at its ends."""
    start, end = (" " if each.isspace() else "" for each in (text[:1], text[-1:]))
    return f"{start}{_safe(text)}{end}"


def _code(text: str) -> _Markdown:
    """Text as code. A backtick or a bar inside would end the code or the cell."""
    return _Markdown("`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`")


def _file_gain(results: Results, predictions: Mapping[str, AllPredictions]) -> str:
    found = gains_on_images(results, results.best, predictions)
    return f" {_safe(file_gain(found[1]))}" if found else ""


def _gains(results: Results, predictions: Mapping[str, AllPredictions]) -> list[str]:
    found = gains_table(results, predictions)
    return [f"{found.title}. {GAINS}", _table([found.head, *found.rows])] if found else []


def _data(results: Results, sheet: str, views: str) -> str:
    manifest = results.prepare.details["manifest"]
    splits = [split for split in ("train", "val", "test") if split in manifest["splits"]]
    classes = manifest["classes"]
    counts = [
        ["class", *splits],
        *([name, *(str(manifest["per_class"][split].get(name, 0)) for split in splits)] for name in classes),
        [_Markdown("**all**"), *(_Markdown(f"**{manifest['splits'][split]}**") for split in splits)],
    ]
    size, channels = manifest["size"], manifest["channels"]
    return (
        f"Source {_code(manifest['source'])}: {len(classes)} classes, images {size}x{size}x{channels}, "
        f"content `{manifest['content'][:12]}`. {_safe(left_out(manifest))} "
        "Teachers learn from all training images. The table of runs says from how many images each student "
        f"learns.\n\n![a few images of each class]({sheet})\n\n"
        f"{f'![what training sees of some images]({views})' if views else ''}\n\n{_table(counts)}"
    )


def _runs(results: Results) -> str:
    lines = [["run", "teacher", "student", "method", "images", "validation %", "ECE", "settings"]]
    for name, run in results.runs.items():
        settings = {key: value for key, value in run.params["run"]["method"].items() if key != "name"}
        settings["protocol"] = run.params["protocol"]
        images = images_learned(run.records["distill"])
        ece = percent(run.records["evaluate"].metrics["ece"])
        numbers = [images, percent(run.validation), ece]
        lines.append([name, run.teacher, run.student, run.method, *numbers, _code(json.dumps(settings))])
    return (
        f"{_table(lines)}\n\nECE is the expected calibration error on the test images: the mean distance "
        "between confidence and accuracy (0 is best)."
    )


def _classes(results: Results) -> str:
    best = results.best
    if best.baseline is None:
        return "There is no baseline to compare the best student with."
    ours, theirs = best.per_class, results.runs[best.baseline].per_class
    names = sorted(ours.keys() & theirs.keys(), key=lambda name: (theirs[name] - ours[name], name))
    lines = [
        [name, percent(theirs[name]), percent(ours[name]), points(ours[name] - theirs[name])]
        for name in names
    ]
    if len(lines) > CLASSES_SHOWN:
        half = CLASSES_SHOWN // 2
        lines = [*lines[:half], ["…", "", "", ""], *lines[-half:]]
    return _table([["class", f"{best.baseline} %", f"{best.name} %", "points"], *lines])


def _errors(best: RunResults, predictions: AllPredictions | None) -> str:
    errors = [
        [pair.actual, pair.predicted, str(pair.images), f"{percent(pair.share)} %"]
        for pair in frequent_errors(best, 10)
    ]
    parts = ["It makes no errors on the test images."]
    if errors:
        parts = [_table([["class", "predicted as", "images", "of the class"], *errors])]
    if predictions is not None:
        counts = outcomes(predictions, best.exported_seed)
        lines = [[what, str(n), f"{percent(n / len(predictions.labels))} %"] for what, n in counts.items()]
        parts.append(_table([["student and teacher", "images", "of all"], *lines]))
    return f"The exported student (seed {best.exported_seed}) on the test images:\n\n" + "\n\n".join(parts)


def _costs(results: Results) -> str:
    found = costs.training_costs(results)
    lines = [[cost.name, *costs.cells(cost)] for cost in found]
    plan = planned(results)
    beside = f"\n\n{plan.title}:\n\n{_table([plan.head, *plan.rows])}" if plan else ""
    return f"{_table([['', *costs.HEADER], *lines])}\n\n{costs.note(found)}{beside}"


def _exports(results: Results, bundles: str) -> str:
    def lines(of: Callable[[RunResults], list[list[str]]]) -> list[list[str]]:
        return [[run.name, *line] for run in results.runs.values() for line in of(run)]

    linked = [
        [_Markdown(f"[{_safe(name)}]({bundles}/{name})"), *line] for name, *line in lines(exports.parity)
    ]
    parts = [
        "Each file was compared with the trained network on real test images. A file that differs is not "
        "shipped. The relative difference is the largest difference as a share of the largest logit.",
        _table([["bundle", *exports.PARITY], *linked]),
    ]
    if quantized := lines(exports.int8):
        parts += ["The int8 file compared with the float file:", _table([["run", *exports.INT8], *quantized])]
    if calibrated := lines(exports.calibration):
        parts += [
            "Probabilities are the softmax of the logits, divided by a temperature that was fitted on "
            "validation images. ECE (15 bins) is on test images:",
            _table([["run", *exports.CALIBRATION], *calibrated]),
        ]
    parts += [
        "Speed side by side, measured in turns, so compare within this table only:",
        _table([["run", *exports.SPEED], *lines(exports.speed)]),
    ]
    return "\n\n".join(parts)


def _thresholds(results: Results, predictions: AllPredictions | None) -> str:
    lines = exports.thresholds(results.best, predictions)
    if not lines:
        return "There are no predictions of the best student."
    return f"{exports.thresholds_note(results.best)}\n\n{_table([exports.THRESHOLDS, *lines])}"


def _provenance(results: Results) -> str:
    has_plan = ["planned"] if any(map(costs.planned, results.records)) else []
    lines: list[list[str]] = [["stage", "record", "finished", "seconds", *has_plan, "outputs"]]
    for record in results.records:
        outputs = ", ".join(f"{_safe(name)} `{digest[:12]}`" for name, digest in record.outputs.items())
        times = [record.finished[:19], f"{record.seconds:.1f}"]
        times += [costs.planned(record)] if has_plan else []
        lines.append([f"{record.stage} {record.name}", _code(record.id[:8]), *times, _Markdown(outputs)])
    return f"Machines and versions:\n\n{_bullets(environments(results))}\n\n{_table(lines)}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)
