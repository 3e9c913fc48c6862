"""The model card: question, answer, data, results, cost, exports, provenance and caveats as Markdown, readable wherever text is."""

import json
import re
from collections.abc import Callable, Iterable

from pipeline.predictions import Predictions, outcomes
from pipeline.report import costs, exports
from pipeline.report.confusions import frequent
from pipeline.report.results import Results, Run
from pipeline.report.words import COSTS, HEADER, caveats, environments, percent, points, rows, verdict

CLASSES_SHOWN = 20  # above, the best and the worst half of it


def card(results: Results, *, said: Predictions | None, sheet: str, bundles: str) -> str:
    """`said` is what the best student and its teacher said of each test image; `sheet` and `bundles` are links from the card."""
    best = results.best
    sections = [
        "# Which small student should be deployed?",
        f"Students taught by {', '.join(f'**{_safe(name)}**' for name in results.teachers)}, compared with the same student trained alone. "
        f"**{_safe(best.name)}** is the best on validation ({percent(best.validation)} %): {_safe(verdict(results))}",
        f"Its bundle is [{_safe(best.name)}]({bundles}/{best.name}). Use it for images like those below, each of one of these classes.",
        "## Data",
        _data(results, sheet),
        "## Results",
        _table([HEADER, *rows(results)]),
        "`*` best on validation. Accuracy, gain and agreement with the teacher are on the test set; "
        "± is the sample standard deviation over n seeds; the gain is over the student alone, with its 95 % interval. " + COSTS,
        "## Runs",
        _table(
            [
                ["run", "teacher", "student", "method", "images", "validation %", "ECE", "settings"],
                *(_settings(run) for run in results.runs.values()),
            ]
        ),
        "ECE is the expected calibration error on the test set: how far confidence is from accuracy, on average (0 is best).",
        "## Classes: the best student against the student alone",
        _classes(results),
        "## Where the best student errs",
        _errors(best, said),
        "## Cost of training",
        _cost(results),
        "## Exports",
        _exports(results, bundles),
        "## Provenance",
        _provenance(results),
        "## How to read this",
        "\n".join(f"- {_safe(caveat)}" for caveat in caveats(results)),
    ]
    return "\n\n".join(sections) + "\n"


def _table(lines: list[list[str]]) -> str:
    head, *body = ([_safe(cell.strip()) if not isinstance(cell, _Ready) else cell for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


class _Ready(str):
    """A cell that is Markdown already."""


def _safe(text: str) -> str:
    """A name as it is, whatever stands in it: nothing of it is markup, and it stays on its line."""
    return re.sub(r"([\\`*\[\]<>|~$#&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _code(text: str) -> _Ready:
    """As code; a backtick or a bar inside would end it or the cell."""
    return _Ready("`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`")


def _data(results: Results, sheet: str) -> str:
    manifest = results.prepare.details["manifest"]
    splits = [split for split in ("train", "val", "test") if split in manifest["splits"]]
    classes = manifest["classes"]
    counts = [
        ["class", *splits],
        *([name, *(str(manifest["per_class"][split].get(name, 0)) for split in splits)] for name in classes),
        [_Ready("**all**"), *(_Ready(f"**{manifest['splits'][split]}**") for split in splits)],
    ]
    size, channels = manifest["size"], manifest["channels"]
    return (
        f"Source {_code(manifest['source'])}: {len(classes)} classes, images {size}x{size}x{channels}, "
        f"{manifest['duplicates_removed']} duplicates removed, content `{manifest['content'][:12]}`. "
        "Teachers learn from the whole training split; what a student learns from is said with its run.\n\n"
        f"![a few images of each class]({sheet})\n\n{_table(counts)}"
    )


def _settings(run: Run) -> list[str]:
    method = {key: value for key, value in run.params["run"]["method"].items() if key != "name"}
    told = {**method, "protocol": run.params["protocol"]}
    images = run.records["distill"].details["sample"]["images"]
    ece = percent(run.records["evaluate"].metrics["ece"])
    return [run.name, run.teacher, run.student, run.method, str(images), percent(run.validation), ece, _code(json.dumps(told))]


def _classes(results: Results) -> str:
    best = results.best
    if best.baseline is None:
        return "The best student has no student alone to be compared with."
    mine, alone = best.per_class, results.runs[best.baseline].per_class
    names = sorted(mine.keys() & alone.keys(), key=lambda name: (alone[name] - mine[name], name))
    told = [[name, percent(alone[name]), percent(mine[name]), points(mine[name] - alone[name])] for name in names]
    half = CLASSES_SHOWN // 2
    shown = told if len(told) <= CLASSES_SHOWN else [*told[:half], ["…", "", "", ""], *told[-half:]]
    return _table([["class", f"{best.baseline} %", f"{best.name} %", "points"], *shown])


def _errors(best: Run, said: Predictions | None) -> str:
    confused = [[pair.actual, pair.predicted, str(pair.images), f"{percent(pair.share)} %"] for pair in frequent(best, 10)]
    parts = ["It makes no error on the test set."]
    if confused:
        parts = [_table([["class", "taken for", "images", "of the class"], *confused])]
    if said is not None:
        counts = [[what, str(n), f"{percent(n / len(said.labels))} %"] for what, n in outcomes(said, best.exported_seed).items()]
        parts.append(_table([["with its teacher", "images", "of all"], *counts]))
    return f"The exported student (seed {best.exported_seed}) on the test set:\n\n" + "\n\n".join(parts)


def _cost(results: Results) -> str:
    told = costs.training(results)
    lines = [[cost.name, *costs.words(cost)] for cost in told]
    return _table([["", *costs.HEADER], *lines]) + f"\n\n{costs.note(told)}"


def _exports(results: Results, bundles: str) -> str:
    def lines(of: Callable[[Run], list[list[str]]]) -> list[list[str]]:
        return [[run.name, *line] for run in results.runs.values() for line in of(run)]

    linked = [[_Ready(f"[{_safe(name)}]({bundles}/{name})"), *line] for name, *line in lines(exports.parity)]
    parts = [
        "Each file was compared with the trained network on real test images; a file that differs is never shipped.",
        _table([["bundle", *exports.PARITY], *linked]),
    ]
    if quantized := lines(exports.int8):
        parts += ["The int8 file beside the float one:", _table([["run", *exports.INT8], *quantized])]
    parts += ["Speed on this machine's CPU:", _table([["run", *exports.SPEED], *lines(exports.speed)])]
    return "\n\n".join(parts)


def _provenance(results: Results) -> str:
    stages: list[list[str]] = [["stage", "record", "finished", "seconds", "outputs"]]
    for record in results.records:
        outputs = _Ready(", ".join(f"{_safe(name)} `{digest[:12]}`" for name, digest in record.outputs.items()))
        stages.append([f"{record.stage} {record.name}", _code(record.id[:8]), record.finished[:19], f"{record.seconds:.1f}", outputs])
    return f"Made with\n\n{_bullets(environments(results))}\n\n{_table(stages)}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)
