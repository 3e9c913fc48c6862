"""Which numbers of the results become which chart."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline.evaluation.predictions import AllPredictions, Predictions, reliability
from pipeline.records.record import Record
from pipeline.records.results import Results, RunResults
from pipeline.report import charts
from pipeline.report.charts import Mark, Scale
from pipeline.report.run_gains import gains_over_baseline
from pipeline.report.words import (
    accuracy_with_spread,
    gain_with_interval,
    is_measured_as_file,
    percent,
    points,
)

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain

BINS = 15  # those of the calibration error
LABELLED = 10  # points of a scatter; of more points only the important ones have a name
Line = tuple[list[float], list[float]]  # images shown, values


class Row(NamedTuple):
    """A row of the chart of all networks, with a strip and words for accuracy and gain."""

    name: str
    what: str
    kind: str
    strip: Markup
    accuracy: str
    gain_strip: Markup | str
    gain: str


class NetworkChart(NamedTuple):
    rows: list[Row]
    accuracy_axis: Markup
    gain_axis: Markup | str  # empty if no run has a baseline


class Figure(NamedTuple):
    title: str
    chart: Markup
    note: str = ""


class ClassBar(NamedTuple):
    name: str
    bar: Markup
    gain: str  # points
    baseline: str  # accuracy, %
    best: str
    teacher: str


def network_chart(results: Results) -> NetworkChart:
    """Teachers, then students, the best on validation first."""
    gains = gains_over_baseline(results)
    teachers = {
        name: run.records["evaluate"].details["teacher"]["accuracy"]
        for name in results.teachers
        if (run := results.run_of_teacher(name))
    }
    across, gain_scale = _accuracy_scale(results, teachers.values()), _gain_scale(gains.values())
    rows = []
    for name, record in results.teachers.items():
        what, accuracy = f"teacher · {record.params['teacher']['net']}", teachers.get(name)
        rows.append(Row(name, what, "teacher", _teacher_strip(across, accuracy), percent(accuracy), "", ""))
    for run in results.ranked:
        gain, kind = gains.get(run.name), _kind(results, run)
        rows.append(
            Row(
                run.name,
                f"{run.method} · {run.student}",
                kind,
                _student_strip(across, results, run, teachers),
                accuracy_with_spread(run),
                _gain_strip(gain_scale, kind, gain) if gain_scale and gain else "",
                gain_with_interval(gain) if gain else _why_no_gain(results, run),
            )
        )
    gain_axis = charts.axis(gain_scale, form="+g") if gain_scale else ""
    return NetworkChart(rows, charts.axis(across, form="g"), gain_axis)


def trade_offs(results: Results) -> list[Figure]:
    """Accuracy against size, and against latency."""
    sizes, names = [], [run.name for run in results.ranked]
    for run in results.ranked:
        sizes.append((run.records["benchmark"].metrics["size_mb"], _point(results, run)))
    with_teachers = list(names)
    for name in results.teachers:
        if results.run_of_teacher(name):
            sizes.append(_teacher_point(results, name, "size_mb", "MB"))
            with_teachers.append(name)
    times: dict[str, list[float]] = {}
    for run in results.ranked:
        times.setdefault(run.student, []).append(run.records["benchmark"].metrics["latency_ms"])
    latencies = [(statistics.median(times[run.student]), _point(results, run)) for run in results.ranked]
    files = [name for name in results.teachers if is_measured_as_file(results, name)]
    latencies += [_teacher_point(results, name, "latency_ms", "ms") for name in files]
    left_out = [name for name in results.teachers if name not in files]
    why = f" Not measured as exported files, and so left out: {', '.join(left_out)}." if left_out else ""
    return [
        Figure("Accuracy % against size, MB", _scatter(sizes, with_teachers, "size in MB")),
        Figure(
            "Accuracy % against latency, ms",
            _scatter(latencies, [*names, *files], "latency in ms"),
            "One image on one thread of the CPU, exported ONNX files. Runs of the same network differ only "
            f"by chance, so they are shown at the median of their times.{why}",
        ),
    ]


def _teacher_point(results: Results, name: str, what: str, unit: str) -> tuple[float, Mark]:
    run = results.run_of_teacher(name)
    assert run is not None
    value = run.records["benchmark"].details["teacher"][what]
    accuracy = run.records["evaluate"].details["teacher"]["accuracy"]
    return value, Mark("teacher", 100 * accuracy, f"{name}: {percent(accuracy)} %, {value:.3g} {unit}")


def class_bars(results: Results) -> list[ClassBar]:
    """For each class the gain of the best student over its baseline, the largest first."""
    best = results.best
    if best.baseline is None:
        return []
    ours, theirs = best.per_class, results.runs[best.baseline].per_class
    tested = best.records["evaluate"].details
    teacher = dict(zip(tested["classes"], tested["teacher"]["per_class"], strict=True))
    names = sorted(ours.keys() & theirs.keys(), key=lambda name: (theirs[name] - ours[name], name))
    gains = {name: ours[name] - theirs[name] for name in names}
    across = charts.scale_around([0.0, *(100 * gain for gain in gains.values())], least=2.0)
    return [
        ClassBar(
            name,
            charts.bar(across, 100 * gain),
            points(gain),
            percent(theirs[name]),
            percent(ours[name]),
            percent(teacher[name]),
        )
        for name, gain in gains.items()
    ]


def calibration(predictions: Mapping[str, AllPredictions], results: Results) -> list[Figure]:
    """The accuracy of each network at each confidence: of the runs that `predictions` names, and of the
    teacher of the first."""
    figures = []
    for name, of_run in predictions.items():
        run, seed = results.runs[name], results.runs[name].exported_seed
        ece = run.records["evaluate"].details["seeds"][str(seed)]["ece"]
        figures.append(_reliability(f"{name}, seed {seed}", of_run.students[seed], of_run.labels, ece))
    for name, of_run in list(predictions.items())[:1]:
        run = results.runs[name]
        ece = run.records["evaluate"].details["teacher"]["ece"]
        figures.append(_reliability(f"{run.teacher} (teacher)", of_run.teacher, of_run.labels, ece))
    return figures


def validation_curves(results: Results) -> list[Figure]:
    """Accuracy on validation in the last phase: a panel for each run, a line for each seed, one scale."""
    found = {run.name: _lines(run.records["distill"], "val_accuracy") for run in results.ranked}
    found = {name: lines for name, lines in found.items() if lines}
    if not found:
        return []
    shown = [images for lines in found.values() for xs, _ in lines for images in xs]
    accuracies = [value for lines in found.values() for _, ys in lines for value in ys]
    x = Scale(0, max(shown), about=4)
    y = charts.scale_around([100 * value for value in accuracies], least=2.0)
    figures = []
    for name, lines in found.items():
        run = results.runs[name]
        drawn = [("seed", xs, [100 * value for value in ys]) for xs, ys in lines]
        if run.baseline in found:
            drawn.insert(0, ("baseline", *_mean_percent(found[run.baseline])))
        final = f"{percent(run.validation)} %"
        of_seeds = (
            f"{len(lines)} seeds; at the end {final} on average" if len(lines) > 1 else f"at the end {final}"
        )
        says = f"{name}: accuracy on validation by images shown, {of_seeds}"
        figures.append(Figure(name, charts.curves(x, y, drawn, says=says, form="g"), f"validation {final}"))
    return figures


def loss_curves(results: Results) -> list[Figure]:
    """Training loss: a panel for each run and phase with a scale of its own, and a line for each seed."""
    figures = []
    stages = ("pretrain", "distill")
    records = [*results.teachers.items(), *results.knowledge.items()]
    records += [(run.name, run.records[stage]) for run in results.ranked for stage in stages]
    for name, record in records:
        for phase in dict.fromkeys(_phase(key) for key in record.curves):
            if lines := _lines(record, "loss", phase):
                x = Scale(0, max(xs[-1] for xs, _ in lines), about=4)
                y = charts.scale_around([value for _, ys in lines for value in ys])
                title = name if phase == "teacher" else f"{name} · {phase}"
                says, drawn = (
                    f"{title}: training loss by images shown",
                    [("seed", xs, ys) for xs, ys in lines],
                )
                figures.append(Figure(title, charts.curves(x, y, drawn, says=says, form=".3g")))
    return figures


def last_values(record: Record, prefix: str) -> dict[str, float]:
    """The last value, mean over seeds, of each column with this prefix, by the rest of the column's name."""
    found: dict[str, list[float]] = {}
    for curve in record.curves.values():
        for column, values in curve.items():
            if column.startswith(prefix) and values and values[-1] is not None:
                found.setdefault(column.removeprefix(prefix), []).append(values[-1])
    return {name: statistics.fmean(values) for name, values in found.items()}


def _kind(results: Results, run: RunResults) -> str:
    return "best" if run is results.best else "baseline" if run.method == "ce" else "student"


def _why_no_gain(results: Results, run: RunResults) -> str:
    is_baseline = any(other.baseline == run.name for other in results.runs.values())
    return "the baseline" if is_baseline else "no baseline"


def _accuracy_scale(results: Results, teachers: Iterable[float]) -> Scale:
    """All students, and those teachers that do not leave too little room for them."""
    seen = [
        100 * value for run in results.runs.values() for value in (*run.accuracy.values(), run.validation)
    ]
    reach = max(max(seen) - min(seen), 2.0)
    near = [100 * value for value in teachers if min(seen) - reach <= 100 * value <= max(seen) + reach]
    return charts.scale_around([*seen, *near], least=2.0)


def _gain_scale(gains: Iterable["Gain"]) -> Scale | None:
    """All gains, and their intervals as far as they leave enough room for the gains."""
    known = list(gains)
    if not known:
        return None
    reach = 3 * max(max(abs(gain.mean) for gain in known), 0.002)
    ends = [end for gain in known for end in (gain.low, gain.high, gain.mean) if end is not None]
    near = [min(max(end, -reach), reach) for end in ends]
    return charts.scale_around([100 * value for value in (0.0, *near)], least=0.5, about=4)


def _gain_strip(across: Scale, kind: str, gain: "Gain") -> Markup:
    interval = None if gain.low is None or gain.high is None else (100 * gain.low, 100 * gain.high)
    mark = Mark(kind, 100 * gain.mean, f"{gain_with_interval(gain)} points")
    return charts.strip(across, [mark], lines={"zero": 0.0}, interval=interval)


def _teacher_strip(across: Scale, accuracy: float | None) -> Markup:
    marks = [] if accuracy is None else [Mark("teacher", 100 * accuracy, f"{percent(accuracy)} %")]
    return charts.strip(across, marks, lines={})


def _student_strip(across: Scale, results: Results, run: RunResults, teachers: Mapping[str, float]) -> Markup:
    lines = {"teacher": 100 * teachers[run.teacher]} if run.teacher in teachers else {}
    if run.baseline is not None:
        lines["baseline"] = 100 * results.runs[run.baseline].mean_accuracy
    marks = [
        Mark("dot", 100 * value, f"seed {seed}: {percent(value)} %", -8)
        for seed, value in run.accuracy.items()
    ]
    marks.append(Mark("validation", 100 * run.validation, f"validation: {percent(run.validation)} %", 6))
    marks.append(Mark(_kind(results, run), 100 * run.mean_accuracy, f"{accuracy_with_spread(run)} %", 6))
    return charts.strip(across, marks, lines=lines)


def _point(results: Results, run: RunResults) -> Mark:
    speed = run.records["benchmark"].metrics
    costs = f"{speed['size_mb']:.2f} MB, {speed['latency_ms']:.3f} ms"
    tooltip = f"{run.name}: {accuracy_with_spread(run)} %, {costs}"
    return Mark(_kind(results, run), 100 * run.mean_accuracy, tooltip)


def _scatter(found: Sequence[tuple[float, Mark]], names: Sequence[str], what: str) -> Markup:
    xs = [x for x, _ in found]
    x, y = charts.scale_of_amounts(xs), charts.scale_around([mark.value for _, mark in found], least=2.0)
    front = _front(found)
    important = {*front, *(i for i, (_, mark) in enumerate(found) if mark.kind in ("best", "teacher"))}
    labels = {i: names[i] for i in (range(len(found)) if len(found) <= LABELLED else important)}
    unbeaten = ", ".join(names[i] for i in front)
    says = f"Accuracy against {what}. Not beaten in both: {unbeaten}. All numbers are in the table above."
    return charts.scatter(x, y, found, labels, front, says=says)


def _front(found: Sequence[tuple[float, Mark]]) -> list[int]:
    """The points that no other point beats in both numbers, the smallest first."""
    front: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: (found[i][0], -found[i][1].value)):
        if not front or found[i][1].value > found[front[-1]][1].value:
            front.append(i)
    return front


def _reliability(title: str, network: Predictions, labels: np.ndarray, ece: float) -> Figure:
    bins = [(b.n, b.confidence, b.accuracy) for b in reliability(network, labels, BINS)]
    confidence, accuracy = float(network.confidence.mean()), float((network.label == labels).mean())
    verdict = "neither overconfident nor underconfident"
    if abs(confidence - accuracy) > 0.01:
        verdict = "overconfident" if confidence > accuracy else "underconfident"
    means = f"Mean confidence {confidence:.1%}, accuracy {accuracy:.1%}"
    note = f"ECE {percent(ece)} %. {means}: {verdict} on average."
    return Figure(title, charts.reliability(bins, says=f"Reliability of {title}. {note}"), note)


def _phase(key: str) -> str:
    """The phase of a curve: `distill` of `distill/seed-0`."""
    return key.rpartition("/seed-")[0] or key


def _lines(record: Record, column: str, phase: str | None = None) -> list[Line]:
    """A line for each seed that has values in this column."""
    lines = []
    for key, curve in record.curves.items():
        if phase in (None, _phase(key)) and column in curve:
            known = [(x, y) for x, y in zip(curve["images"], curve[column], strict=True) if y is not None]
            if known:
                lines.append(([x for x, _ in known], [y for _, y in known]))
    return lines


def _mean_percent(lines: Sequence[Line]) -> Line:
    """The mean over seeds, up to the shortest line's end."""
    n = min(len(xs) for xs, _ in lines)
    return lines[0][0][:n], [100 * statistics.fmean(ys[i] for _, ys in lines) for i in range(n)]
