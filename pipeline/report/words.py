"""How numbers and findings are worded, so that the table, the page and the Markdown report say the same."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.records.record import Record
from pipeline.records.results import Results, RunResults
from pipeline.report.run_gains import gains_over_baseline

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain
    from pipeline.evaluation.image_gains import ImageGain

COSTS = "MB and ms: exported ONNX files; ms is the median of single images on one thread of the CPU."
IN_TORCH = "Of {} they are those of the plain PyTorch network, since no exported file of it was measured."
GAINS = (
    "The method is the mean over seeds, the file the exported seed against the baseline's exported seed. "
    "Other seeds: what other seeds would give on these test images. Other images: what these networks would "
    "give on other images of the kind; both networks answered the same images, so the differences are paired."
)
HEADER = ["", "net", "file %", "int8 %", "mean %", "n", "gain, points", "agree %", "params M", "MB", "ms"]
BY_CLASS = {"balanced_accuracy": "balanced %", "macro_f1": "F1 %"}  # columns where the test is unbalanced
UNBALANCED = (
    "The classes of the test images differ in size, so there are two means over classes: balanced accuracy, "
    "the mean of their recall, and macro-F1, the mean of their F1 (0 for a class that is never predicted)."
)
SELECTED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "loss": "cross-entropy",
}


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def images_learned(distilled: Record) -> str:
    """From how many images a student learned: labelled ones, and others if there were any."""
    subset = distilled.details["subset"]
    others = subset.get("unlabelled", 0)
    labelled = f"{subset['images']:,}"
    return f"{labelled} labelled, {others:,} without labels" if others else labelled


def left_out(manifest: Mapping[str, Any]) -> str:
    """Which images have no label, and which files did not become images."""
    unlabelled = f"{manifest['unlabelled']:,} images have no label. " if manifest["unlabelled"] else ""
    return f"{unlabelled}Files left out (left_out.csv): {kinds_left_out(manifest) or 'none'}."


def kinds_left_out(manifest: Mapping[str, Any]) -> str:
    """Such as `duplicate: 3, truncated: 1`."""
    return ", ".join(f"{kind}: {n:,}" for kind, n in manifest["left_out"].items())


def accuracy_with_spread(run: RunResults) -> str:
    scores = run.records["evaluate"].metrics
    return percent(scores["accuracy"]) + (f" ± {percent(scores['spread'])}" if scores["n"] > 1 else "")


def interval(gain: "ImageGain") -> str:
    return f"{points(gain.low)} to {points(gain.high)}"


def file_gain(gain: "ImageGain") -> str:
    """A sentence on the file itself, which may gain less or more than its method."""
    verdict = (
        "more than chance" if gain.low > 0 else "less than chance" if gain.high < 0 else "which may be chance"
    )
    return (
        f"On the same test images its file gains {points(gain.mean)} [{points(gain.low)}, "
        f"{points(gain.high)}] points over the baseline's file, {verdict}."
    )


def file_with_interval(run: RunResults) -> str:
    """Accuracy of the exported file; the interval is about other test images."""
    found = run.file_accuracy
    return f"{percent(found.value)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def why_this_seed(results: Results, run: RunResults) -> str:
    """Which seed is in the bundle, and why."""
    seeds = len(run.accuracy)
    if seeds == 1:
        return f"seed {run.exported_seed}, the only one"
    value = results.file_value(run)
    score = "" if value is None else f" ({score_in_words(results, value)})"
    return f"seed {run.exported_seed}, the best of {seeds} on validation{score}"


def file_in_words(results: Results, run: RunResults) -> str:
    """How good the file in the bundle is, and which seed it is."""
    found = run.file_accuracy
    int8 = "" if run.int8_accuracy is None else f", its int8 file on {percent(run.int8_accuracy)} %"
    return (
        f"right on {percent(found.value)} % of {found.images:,} test images (95 % interval "
        f"{percent(found.low)} to {percent(found.high)}){int8}; {why_this_seed(results, run)}."
    )


def gain_with_interval(gain: "Gain") -> str:
    if gain.low is None or gain.high is None:
        return points(gain.mean)
    return f"{points(gain.mean)} [{points(gain.low)}, {points(gain.high)}]"


def cost_cells(speed: Mapping[str, float]) -> list[str]:
    """Parameters, size and latency; empty where they were not measured."""
    formats = {"parameters_m": ".3f", "size_mb": ".2f", "latency_ms": ".3f"}
    return [format(speed[key], form) if key in speed else "" for key, form in formats.items()]


def on_validation(results: Results, run: RunResults) -> str:
    """The score on validation by which the best run is chosen, named if it is not accuracy."""
    return score_in_words(results, results.value(run))


def score_in_words(results: Results, value: float) -> str:
    select = results.select
    if select == "accuracy":
        return f"{percent(value)} %"
    return f"{SELECTED[select]} {f'{-value:.4f}' if select == 'loss' else f'{percent(value)} %'}"


def costs_note(results: Results) -> str:
    """Of what size and latency are, and how they were measured."""
    others = [name for name in results.teachers if not is_measured_as_file(results, name)]
    return " ".join([COSTS, *([IN_TORCH.format(", ".join(others))] if others else [])])


def is_measured_as_file(results: Results, teacher: str) -> bool:
    """Whether a teacher was measured as students are. Older records and networks that no exporter takes have
    PyTorch's time."""
    run = results.run_of_teacher(teacher)
    return run is not None and "file" in run.records["benchmark"].details["teacher"]


def header(results: Results) -> list[str]:
    """The columns of `result_rows`."""
    place = HEADER.index("mean %") + 1
    return [*HEADER[:place], *(BY_CLASS.values() if results.is_unbalanced else ()), *HEADER[place:]]


def result_rows(results: Results) -> list[list[str]]:
    """A line for each teacher, then for each student, under `header`. The best student is marked."""
    gains = gains_over_baseline(results)
    lines = [
        _teacher_row(results, name, record, results.run_of_teacher(name))
        for name, record in results.teachers.items()
    ]
    for name, run in results.runs.items():
        scores = run.records["evaluate"].metrics
        lines.append(
            [
                f"{'*' if run is results.best else ' '} {name}",
                run.student,
                file_with_interval(run),
                percent(run.int8_accuracy),
                accuracy_with_spread(run),
                *_cells_by_class(results, scores),
                f"{scores['n']:.0f}",
                gain_with_interval(gains[name]) if name in gains else "",
                percent(scores.get("agreement")),
                *cost_cells(run.records["benchmark"].metrics),
            ]
        )
    return lines


def _cells_by_class(results: Results, scores: Mapping[str, float]) -> list[str]:
    return [percent(scores.get(key)) for key in BY_CLASS] if results.is_unbalanced else []


def _teacher_row(results: Results, name: str, record: Record, run: RunResults | None) -> list[str]:
    scores = run.records["evaluate"].details["teacher"] if run else {}
    speed = run.records["benchmark"].details["teacher"] if run else {}
    net, accuracy = record.params["teacher"]["net"], percent(scores.get("accuracy"))
    scored = [accuracy, *_cells_by_class(results, scores)]
    return [f"  {name} (teacher)", net, "", "", *scored, "1", "", "", *cost_cells(speed)]


def verdict(results: Results) -> str:
    """How good the best student is, to be written after its name and a colon."""
    best, gains = results.best, gains_over_baseline(results)
    if best.method == "ce":
        return "it is the baseline, trained without a teacher, so no method was worth its cost here."
    if best.name not in gains:
        return (
            "its gain is not known, because it has no baseline: no run trains the same student on the same "
            "data without a teacher (add a run with method ce)."
        )
    gain = gains[best.name]
    text = (
        f"on the test images it gains {gain_with_interval(gain)} points over the baseline ({best.baseline})"
    )
    if gain.low is None:
        return f"{text}. One seed gives no interval, so this may be chance."
    return f"{text}, which {'is more than chance' if gain.low > 0 else 'may be chance'}."


def seeds_per_run(results: Results) -> list[int]:
    """How many seeds runs have: each number once, the smallest first."""
    return sorted({len(run.accuracy) for run in results.runs.values()})


def legend(results: Results) -> str:
    """What the columns of the table are."""
    of_file = (
        "file %: the exported file, with its 95 % interval for other test images; int8 %: its int8 file. "
    )
    counts = seeds_per_run(results)
    if counts == [1]:
        return f"{of_file}mean % and gain over the baseline: the method; one seed gives no interval."
    no_interval = " (none from one seed)" if 1 in counts else ""
    return (
        f"{of_file}mean % and gain over the baseline: the method, over n seeds; ± is their standard "
        f"deviation, and [ ] the gain's 95 % interval for other seeds{no_interval}."
    )


def caveats(results: Results) -> list[str]:
    """What a reader of the numbers must know."""
    gains = gains_over_baseline(results).values()
    kinds = sorted({"paired by seed" if gain.paired else "unpaired" for gain in gains})
    which = f" ({' and '.join(kinds)})" if kinds else ""
    counts = seeds_per_run(results)
    intervals = [
        f"Seeds per run: {', '.join(map(str, counts))}. An interval from few seeds is wide, and it assumes "
        "that accuracies are normally distributed.",
        f"The 95 % intervals of the gains{which} are about other seeds on "
        "this split, not about other data. They are not corrected for the comparison of many runs.",
    ]
    of_one_seed = ["Each run has 1 seed, so a gain may be chance: another seed gives another accuracy."]
    return [
        "The best run is chosen on the validation images. Each trained network was evaluated on the test "
        "images only once, by the stage evaluate.",
        *(of_one_seed if counts == [1] else intervals),
        "Latency is that of the machine that ran the graph, measured once for each file by stage export. "
        "Compare it within this report only.",
        "The student knows only the classes it was trained on. It also gives one of them to an image of "
        "anything else.",
        *processes(results),
        *warnings(results),
    ]


def processes(results: Results) -> list[str]:
    """A sentence if the runs were trained by different numbers of processes; older records do not say."""
    counts = {run.name: run.records["distill"].environment.get("processes", 1) for run in results.ranked}
    if len(set(counts.values())) == 1:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        f"The runs were trained by different numbers of processes ({listed}), which changes some methods' "
        "results: see docs/scaling.md."
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
