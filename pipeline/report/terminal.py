"""The table that the terminal shows at the end: all networks, the best one, and where the files are."""

import textwrap
from pathlib import Path

from pipeline.records.results import Results
from pipeline.report.words import COSTS, UNBALANCED, header, on_validation, result_rows, seeds_per_run

WIDTH = 110
GAP = "  "
LEFT_OUT = ("agree %", "params M")  # where the means over classes need the room


def table(results: Results, *, bundles: Path, report: Path) -> str:
    best = results.best
    lines = [
        *_align(_lines(results)),
        "",
        f"* best on validation: {best.name} ({on_validation(results, best)} there). "
        "Accuracy, gain and agreement are on the test set.",
        f"  {_legend(results)}",
        f"  {COSTS}",
        *([f"  {line}" for line in textwrap.wrap(UNBALANCED, WIDTH - 2)] if results.is_unbalanced else []),
        "",
        f"bundles   {bundles}/RUN   (best: {bundles / best.name})",
        f"report    {report}",
        "MLflow    handdown ui   (in a clone: make ui)",
        "",
    ]
    return "\n".join(lines)


def _legend(results: Results) -> str:
    counts = seeds_per_run(results)
    if counts == [1]:
        return "The gain over the baseline has no interval: that takes several seeds."
    no_interval = " (none from one seed)" if 1 in counts else ""
    return f"± is the spread over n seeds; the gain over the baseline has its 95 % interval{no_interval}."


def _lines(results: Results) -> list[list[str]]:
    head = header(results)
    shown = [i for i, title in enumerate(head) if not (results.is_unbalanced and title in LEFT_OUT)]
    return [[line[i] for i in shown] for line in (head, *result_rows(results))]


def _align(lines: list[list[str]]) -> list[str]:
    """Aligned text, at most WIDTH wide: the two columns of names are cut if necessary."""
    numbers = sum(max(len(line[i]) for line in lines) + len(GAP) for i in range(2, len(lines[0])))
    room = WIDTH - numbers - len(GAP)
    net = min(max(len(line[1]) for line in lines), room // 2)
    lines = [[_cut(line[0], room - net), _cut(line[1], net), *line[2:]] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = []
    for line in lines:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        cells = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        aligned.append(GAP.join([*names, *cells]).rstrip())
    return [aligned[0], "-" * max(map(len, aligned)), *aligned[1:]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
