"""What of the results becomes which chart."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from pipeline.predictions import Predictions, Said, reliability
from pipeline.record import Record
from pipeline.report import charts
from pipeline.report.charts import Mark
from pipeline.report.results import Results, Run, gains
from pipeline.report.words import accuracy, gained, percent, points

if TYPE_CHECKING:
    from pipeline.evaluate import Gain

BINS = 15  # as the calibration error's
LABELLED = 10  # points of a scatter; of more only the outstanding ones


class Row(NamedTuple):
    """A line of the chart of all networks: its name, what it is, and a strip and words for accuracy and gain."""

    name: str
    what: str
    kind: str
    strip: Markup
    accuracy: str
    gain_strip: Markup | str
    gain: str


class Figure(NamedTuple):
    title: str
    chart: Markup
    note: str = ""


def kind(results: Results, run: Run) -> str:
    return "best" if run is results.best else "alone" if run.method == "ce" else "student"


def teacher_accuracy(results: Results, name: str) -> float | None:
    run = results.taught_by(name)
    return run.records["evaluate"].details["teacher"]["accuracy"] if run else None


def mean(run: Run) -> float:
    return run.records["evaluate"].metrics["accuracy"]


def students(results: Results) -> tuple[list[Row], Markup, Markup | str]:
    """Teachers, then students, the best on validation first; and the axes of accuracy and gain."""
    won = gains(results)
    taught = {name: score for name in results.teachers if (score := teacher_accuracy(results, name)) is not None}
    along = _accuracy_scale(results, taught.values())
    across = _gain_scale(won.values())
    told = [
        Row(
            name,
            f"teacher · {record.params['teacher']['net']}",
            "teacher",
            _teacher_strip(along, name, taught),
            percent(taught.get(name)),
            "",
            "",
        )
        for name, record in results.teachers.items()
    ]
    for run in results.ranked:
        gain = won.get(run.name)
        why = (
            ""
            if gain is not None
            else "the measure"
            if any(other.baseline == run.name for other in results.runs.values())
            else "no measure"
        )
        strip = _gain_strip(across, kind(results, run), gain) if across and gain else ""
        told.append(
            Row(
                run.name,
                f"{run.method} · {run.student}",
                kind(results, run),
                _student_strip(along, results, run, taught),
                accuracy(run),
                strip,
                gained(gain) if gain is not None else why,
            )
        )
    return told, charts.axis(along, form="g"), charts.axis(across, form="+g") if across else ""


def trade(results: Results) -> list[Figure]:
    """Accuracy against size, and against latency."""
    names = [run.name for run in results.ranked]
    size = [(run.records["benchmark"].metrics["size_mb"], _point(results, run)) for run in results.ranked]
    both = list(names)
    for name in results.teachers:
        run, score = results.taught_by(name), teacher_accuracy(results, name)
        if run is not None and score is not None:
            big = run.records["benchmark"].details["teacher"]["size_mb"]
            size.append((big, Mark("teacher", 100 * score, f"{name}: {percent(score)} %, {big:.2f} MB")))
            both.append(name)
    times: dict[str, list[float]] = {}
    for run in results.ranked:
        times.setdefault(run.student, []).append(run.records["benchmark"].metrics["latency_ms"])
    latency = [(statistics.median(times[run.student]), _point(results, run)) for run in results.ranked]
    return [
        Figure("Accuracy % against size, MB", _scatter(size, both, "size in MB")),
        Figure(
            "Accuracy % against latency, ms",
            _scatter(latency, names, "latency in ms"),
            "One image on the CPU, exported ONNX files. Runs of the same network differ by chance only "
            "and stand at the median of their times. A teacher, measured in PyTorch, can't be compared and is left out.",
        ),
    ]


def classes(results: Results) -> list[tuple[str, Markup, str, str, str, str]]:
    """Class, bar, points gained by the best student over the student alone; accuracy of both and of the teacher; the largest gain first."""
    best = results.best
    if best.baseline is None:
        return []
    mine, alone = best.per_class, results.runs[best.baseline].per_class
    tested = best.records["evaluate"].details
    teacher = dict(zip(tested["classes"], tested["teacher"]["per_class"], strict=True))
    names = sorted(mine.keys() & alone.keys(), key=lambda name: (alone[name] - mine[name], name))
    along = charts.scale([0.0, *(100 * (mine[name] - alone[name]) for name in names)], least=2.0)
    return [
        (
            name,
            charts.bar(along, 100 * (mine[name] - alone[name])),
            points(mine[name] - alone[name]),
            percent(alone[name]),
            percent(mine[name]),
            percent(teacher[name]),
        )
        for name in names
    ]


def calibration(said: Mapping[str, Predictions], results: Results) -> list[Figure]:
    """How right a network is when it is so and so sure: the best student, the student alone, the teacher."""
    figures = []
    for name, predictions in said.items():
        seed = results.runs[name].exported_seed
        ece = results.runs[name].records["evaluate"].details["seeds"][str(seed)]["ece"]
        figures.append(_reliability(f"{name}, seed {seed}", predictions.students[seed], predictions, ece))
    if said:
        first = results.runs[next(iter(said))]
        ece = first.records["evaluate"].details["teacher"]["ece"]
        predictions = said[first.name]
        figures.append(_reliability(f"{first.teacher} (teacher)", predictions.teacher, predictions, ece))
    return figures


def validation_curves(results: Results) -> list[Figure]:
    """A panel a run, all on the same scales: accuracy on validation while the last phase trains, a line a seed."""
    found = {run.name: _series(run.records["distill"], "val_accuracy") for run in results.ranked}
    found = {name: series for name, series in found.items() if series}
    if not found:
        return []
    every = [value for series in found.values() for xs, ys in series for value in ys]
    epochs = [value for series in found.values() for xs, ys in series for value in xs]
    x, y = charts.Scale(0, max(epochs), about=4), charts.scale([100 * value for value in every], least=2.0)
    figures = []
    for name, series in found.items():
        run = results.runs[name]
        lines = [("seed", xs, [100 * value for value in ys]) for xs, ys in series]
        if run.baseline in found:
            lines.insert(0, ("reference", *_mean(found[run.baseline])))
        told = f"{name}: accuracy on validation by epoch, {len(series)} seeds, at the end {percent(run.validation)} % on average"
        figures.append(Figure(name, charts.curves(x, y, lines, says=told, form="g"), f"validation {percent(run.validation)} %"))
    return figures


def loss_curves(results: Results) -> list[Figure]:
    """A panel a run and phase, each on its own scale: the loss, a line a seed."""
    figures = []
    records = [*results.teachers.items(), *results.knowledge.items()]
    records += [(run.name, run.records[stage]) for run in results.ranked for stage in ("pretrain", "distill")]
    for name, record in records:
        for phase in dict.fromkeys(key.rpartition("/seed-")[0] or key for key in record.curves):
            series = _series(record, "loss", phase)
            if not series:
                continue
            x = charts.Scale(0, max(xs[-1] for xs, _ in series), about=4)
            y = charts.scale([value for _, ys in series for value in ys])
            lines = [("seed", xs, ys) for xs, ys in series]
            title = name if phase == "teacher" else f"{name} · {phase}"
            figures.append(Figure(title, charts.curves(x, y, lines, says=f"{title}: training loss by epoch", form=".3g")))
    return figures


def last(record: Record, begins: str) -> dict[str, float]:
    """The last values of the curves' columns that begin so, the mean over seeds, by what follows."""
    found: dict[str, list[float]] = {}
    for curve in record.curves.values():
        for column, values in curve.items():
            if column.startswith(begins) and values and values[-1] is not None:
                found.setdefault(column.removeprefix(begins), []).append(values[-1])
    return {name: statistics.fmean(values) for name, values in found.items()}


def _accuracy_scale(results: Results, taught: Iterable[float]) -> charts.Scale:
    """All students, and the teachers that don't squeeze them together."""
    seen = [100 * value for run in results.runs.values() for value in (*run.accuracy.values(), run.validation)]
    reach = max(max(seen) - min(seen), 2.0)
    near = [100 * value for value in taught if min(seen) - reach <= 100 * value <= max(seen) + reach]
    return charts.scale([*seen, *near], least=2.0)


def _gain_scale(won: Iterable["Gain"]) -> charts.Scale | None:
    """All gains and, as far as they don't squeeze the rest together, their intervals."""
    known = list(won)
    if not known:
        return None
    reach = 3 * max(max(abs(gain.mean) for gain in known), 0.002)
    ends = [end for gain in known for end in (gain.low, gain.high, gain.mean) if end is not None]
    return charts.scale([100 * value for value in (0.0, *(min(max(end, -reach), reach) for end in ends))], least=0.5, about=4)


def _gain_strip(across: charts.Scale, shape: str, gain: "Gain") -> Markup:
    span = None if gain.low is None or gain.high is None else (100 * gain.low, 100 * gain.high)
    return charts.row(across, [Mark(shape, 100 * gain.mean, f"{gained(gain)} points")], lines={"zero": 0.0}, span=span)


def _teacher_strip(along: charts.Scale, name: str, taught: Mapping[str, float]) -> Markup:
    marks = [Mark("teacher", 100 * taught[name], f"{percent(taught[name])} %")] if name in taught else []
    return charts.row(along, marks, lines={})


def _student_strip(along: charts.Scale, results: Results, run: Run, taught: Mapping[str, float]) -> Markup:
    lines = {"to-teacher": 100 * taught[run.teacher]} if run.teacher in taught else {}
    if run.baseline is not None:
        lines["to-alone"] = 100 * mean(results.runs[run.baseline])
    marks = [Mark("dot", 100 * value, f"seed {seed}: {percent(value)} %", -8) for seed, value in run.accuracy.items()]
    marks.append(Mark("validation", 100 * run.validation, f"validation: {percent(run.validation)} %", 6))
    marks.append(Mark(kind(results, run), 100 * mean(run), f"{accuracy(run)} %", 6))
    return charts.row(along, marks, lines=lines)


def _point(results: Results, run: Run) -> Mark:
    speed = run.records["benchmark"].metrics
    told = f"{run.name}: {accuracy(run)} %, {speed['size_mb']:.2f} MB, {speed['latency_ms']:.2f} ms"
    return Mark(kind(results, run), 100 * mean(run), told)


def _scatter(found: Sequence[tuple[float, Mark]], names: Sequence[str], what: str) -> Markup:
    xs = [x for x, _ in found]
    x, y = charts.amounts(xs), charts.scale([mark.value for _, mark in found], least=2.0)
    front = _front(found)
    outstanding = {*front, *(i for i, (_, mark) in enumerate(found) if mark.kind in ("best", "teacher"))}
    labels = {i: names[i] for i in (range(len(found)) if len(found) <= LABELLED else outstanding)}
    says = f"Accuracy against {what}. Not beaten in both: {', '.join(names[i] for i in front)}. All numbers are in the table above."
    return charts.scatter(x, y, found, labels, front, says=says)


def _front(found: Sequence[tuple[float, Mark]]) -> list[int]:
    """Those that none other beats in both, the smallest first."""
    front: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: (found[i][0], -found[i][1].value)):
        if not front or found[i][1].value > found[front[-1]][1].value:
            front.append(i)
    return front


def _reliability(title: str, network: Said, said: Predictions, ece: float) -> Figure:
    bins = [(b.n, b.confidence, b.accuracy) for b in reliability(network, said.labels, BINS)]
    sure = float(network.confidence.mean())
    right = float((network.label == said.labels).mean())
    lean = (
        "surer than it is right"
        if sure > right + 0.01
        else "less sure than it is right"
        if sure < right - 0.01
        else "as sure as it is right"
    )
    note = f"ECE {percent(ece)} %. On average {sure:.1%} sure, {right:.1%} right: {lean}."
    return Figure(title, charts.reliability(bins, says=f"Reliability of {title}. {note}"), note)


def _series(record: Record, column: str, phase: str | None = None) -> list[tuple[list[float], list[float]]]:
    """(epochs, values) of each seed, where the column has values."""
    found = []
    for key, curve in record.curves.items():
        if phase in (None, key.rpartition("/seed-")[0] or key) and column in curve:
            known = [(x, y) for x, y in zip(curve["epoch"], curve[column], strict=True) if y is not None]
            if known:
                found.append(([x for x, _ in known], [y for _, y in known]))
    return found


def _mean(series: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Over seeds, in percent, as far as all of them go."""
    n = min(len(xs) for xs, _ in series)
    return series[0][0][:n], [100 * statistics.fmean(ys[i] for _, ys in series) for i in range(n)]
