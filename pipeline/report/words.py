"""How numbers and findings are worded, so that the table, the page and the Markdown report say the same."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.records.record import Record
from pipeline.records.results import Results, RunResults
from pipeline.report.run_gains import gains_over_baseline

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain

COSTS = (
    "MB and latency (one image, CPU): students as exported ONNX files, teachers as plain PyTorch networks."
)
HEADER = ["", "net", "accuracy %", "n", "gain, points", "agree %", "params M", "MB", "latency ms"]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def left_out(manifest: Mapping[str, Any]) -> str:
    """Which images have no label, and which files did not become images."""
    files = ", ".join(f"{kind}: {n:,}" for kind, n in manifest["left_out"].items())
    unlabelled = f"{manifest['unlabelled']:,} images have no label. " if manifest["unlabelled"] else ""
    return f"{unlabelled}Files left out (left_out.csv): {files or 'none'}."


def accuracy_with_spread(run: RunResults) -> str:
    scores = run.records["evaluate"].metrics
    return percent(scores["accuracy"]) + (f" ± {percent(scores['spread'])}" if scores["n"] > 1 else "")


def gain_with_interval(gain: "Gain") -> str:
    if gain.low is None or gain.high is None:
        return points(gain.mean)
    return f"{points(gain.mean)} [{points(gain.low)}, {points(gain.high)}]"


def cost_cells(speed: Mapping[str, float]) -> list[str]:
    """Parameters, size and latency; empty where they were not measured."""
    formats = {"parameters_m": ".3f", "size_mb": ".2f", "latency_ms": ".2f"}
    return [format(speed[key], form) if key in speed else "" for key, form in formats.items()]


def result_rows(results: Results) -> list[list[str]]:
    """A line for each teacher, then for each student, under HEADER. The best student is marked."""
    gains = gains_over_baseline(results)
    lines = [
        _teacher_row(name, record, results.run_of_teacher(name)) for name, record in results.teachers.items()
    ]
    for name, run in results.runs.items():
        scores = run.records["evaluate"].metrics
        lines.append(
            [
                f"{'*' if run is results.best else ' '} {name}",
                run.student,
                accuracy_with_spread(run),
                f"{scores['n']:.0f}",
                gain_with_interval(gains[name]) if name in gains else "",
                percent(scores.get("agreement")),
                *cost_cells(run.records["benchmark"].metrics),
            ]
        )
    return lines


def _teacher_row(name: str, record: Record, run: RunResults | None) -> list[str]:
    scores = run.records["evaluate"].details["teacher"] if run else {}
    speed = run.records["benchmark"].details["teacher"] if run else {}
    net, accuracy = record.params["teacher"]["net"], percent(scores.get("accuracy"))
    return [f"  {name} (teacher)", net, accuracy, "1", "", "", *cost_cells(speed)]


def verdict(results: Results) -> str:
    """How good the best student is, to be written after its name and a colon."""
    best, gains = results.best, gains_over_baseline(results)
    if best.method == "ce":
        return "it was trained without a teacher, so no method was worth its cost here."
    if best.name not in gains:
        return (
            "its gain is not known, because no run trains the same student on the same data without a "
            "teacher (add a run with method ce)."
        )
    gain = gains[best.name]
    text = (
        f"on the test images it gains {gain_with_interval(gain)} points over the baseline ({best.baseline})"
    )
    if gain.low is None:
        return f"{text}. One seed gives no interval, so this may be chance."
    return f"{text}, which {'is more than chance' if gain.low > 0 else 'may be chance'}."


def fewest_seeds(results: Results) -> int:
    return min(len(run.accuracy) for run in results.runs.values())


def caveats(results: Results) -> list[str]:
    """What a reader of the numbers must know."""
    gains = gains_over_baseline(results).values()
    kinds = sorted({"paired by seed" if gain.paired else "unpaired" for gain in gains})
    which = f" ({' and '.join(kinds)})" if kinds else ""
    counts = sorted({len(run.accuracy) for run in results.runs.values()})
    return [
        "The best run is chosen on the validation images. Each trained network was evaluated on the test "
        "images only once, by the stage evaluate.",
        f"Seeds per run: {', '.join(map(str, counts))}. An interval from few seeds is wide, and it assumes "
        "that accuracies are normally distributed.",
        f"The 95 % intervals of the gains{which} are about other seeds on "
        "this split, not about other data. They are not corrected for the comparison of many runs.",
        "Latency is that of the machine that ran the graph. Compare it within this report only.",
        "The student knows only the classes it was trained on. It also gives one of them to an image of "
        "anything else.",
        *warnings(results),
    ]


def warnings(results: Results) -> list[str]:
    """What the analyses found wrong inside the students."""
    return [
        f"{run.name}: {warning}"
        for run in results.ranked
        if run.analysis
        for warning in run.analysis.details["warnings"]
    ]


def environments(results: Results) -> list[str]:
    """The machines and versions that stages ran with, each once."""
    lines = {
        ", ".join(f"{key} {value}" for key, value in record.environment.items()) for record in results.records
    }
    return sorted(lines)
