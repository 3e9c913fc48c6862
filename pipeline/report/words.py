"""How numbers and findings are said, so that the table, the page and the card say the same."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.record import Record
from pipeline.report.results import Results, Run, gains

if TYPE_CHECKING:
    from pipeline.evaluate import Gain

COSTS = "MB and latency (one image, CPU): students as exported ONNX files, teachers as plain PyTorch networks."
HEADER = ["", "net", "accuracy %", "n", "gain, points", "agree %", "params M", "MB", "latency ms"]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def accuracy(run: Run) -> str:
    scores = run.records["evaluate"].metrics
    return percent(scores["accuracy"]) + (f" ± {percent(scores['spread'])}" if scores["n"] > 1 else "")


def gained(gain: "Gain") -> str:
    return points(gain.mean) + ("" if gain.low is None or gain.high is None else f" [{points(gain.low)}, {points(gain.high)}]")


def cost(speed: Mapping[str, float]) -> list[str]:
    """Parameters, size and latency; empty where they were not measured."""
    shown = (("parameters_m", ".3f"), ("size_mb", ".2f"), ("latency_ms", ".2f"))
    return [format(speed[key], form) if key in speed else "" for key, form in shown]


def rows(results: Results) -> list[list[str]]:
    """A line for each teacher, then for each student, under HEADER; the best student is marked."""
    won = gains(results)
    told = [_teacher(name, record, results.taught_by(name)) for name, record in results.teachers.items()]
    for run in results.runs.values():
        scores = run.records["evaluate"].metrics
        told.append(
            [
                f"{'*' if run is results.best else ' '} {run.name}",
                run.student,
                accuracy(run),
                f"{scores['n']:.0f}",
                gained(won[run.name]) if run.name in won else "",
                percent(scores.get("agreement")),
                *cost(run.records["benchmark"].metrics),
            ]
        )
    return told


def verdict(results: Results) -> str:
    """What the best student is worth, ready to follow its name and a colon."""
    best, won = results.best, gains(results)
    if best.method == "ce":
        return "a student trained alone; no method earned its cost here."
    if best.name not in won:
        return "no run trains this student alone on the same data, so its gain is not known (add one with method ce)."
    gain = won[best.name]
    told = f"on the test set it gains {gained(gain)} points over the student alone ({best.baseline})"
    if gain.low is None:
        return f"{told}; one seed gives no interval, so this may be chance."
    return f"{told}, {'more than chance.' if gain.low > 0 else 'which chance alone could explain.'}"


def fewest_seeds(results: Results) -> int:
    return min(len(run.accuracy) for run in results.runs.values())


def caveats(results: Results) -> list[str]:
    """What the numbers don't say."""
    kinds = sorted({"paired by seed" if gain.paired else "unpaired" for gain in gains(results).values()})
    counts = sorted({len(run.accuracy) for run in results.runs.values()})
    return [
        "The best run is chosen on the validation set; each trained network was read on the test set once, in evaluate.",
        f"Seeds a run: {', '.join(map(str, counts))}. An interval from few seeds is wide and rests on an assumption of normality.",
        f"Intervals of the gain are 95 %{', ' + ' and '.join(kinds) if kinds else ''}; "
        "they cover seeds on this one split, not other data, and are not corrected for comparing many runs.",
        "Latency is of the machine that ran the graph; compare it within this report only.",
        "The student knows only the classes it was trained on: an image of anything else gets one of them too.",
        *warnings(results),
    ]


def warnings(results: Results) -> list[str]:
    """What looked wrong inside the students that were looked into."""
    return [f"{run.name}: {warning}" for run in results.ranked if run.analysis for warning in run.analysis.details["warnings"]]


def environments(results: Results) -> list[str]:
    """Each kind of machine and versions that a stage ran with, once."""
    return sorted({", ".join(f"{key} {value}" for key, value in record.environment.items()) for record in results.records})


def _teacher(name: str, record: Record, run: Run | None) -> list[str]:
    measured = run.records["evaluate"].details["teacher"] if run else {}
    speed = run.records["benchmark"].details["teacher"] if run else {}
    return [f"  {name} (teacher)", record.params["teacher"]["net"], percent(measured.get("accuracy")), "1", "", "", *cost(speed)]
