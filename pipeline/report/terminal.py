"""The table that the terminal shows at the end: all networks, the best one, and where the files are."""

import textwrap
from pathlib import Path

from pipeline.records.results import Results
from pipeline.report.words import (
    UNBALANCED,
    costs_note,
    file_in_words,
    header,
    legend,
    on_validation,
    result_rows,
)

WIDTH = 110
GAP = "  "
LEFT_OUT = ("agree %", "params M")  # they are in the report
CROWDED = (*LEFT_OUT, "int8 %")  # where the means over classes need the room


def table(results: Results, *, bundles: Path, report: Path) -> str:
    best = results.best
    lines = [
        *_align(_lines(results)),
        "",
        f"* best on validation: {best.name} ({on_validation(results, best)} there). "
        "All else is on the test set.",
        *_wrap(f"To deploy: {bundles / best.name}, {file_in_words(results, best)}"),
        *_wrap(legend(results)),
        *_wrap(costs_note(results)),
        *(_wrap(UNBALANCED) if results.is_unbalanced else []),
        "",
        f"bundles   {bundles}/RUN   (best: {bundles / best.name})",
        f"report    {report}",
        "MLflow    handdown ui   (in a clone: make ui)",
        "",
    ]
    return "\n".join(lines)


def _wrap(text: str) -> list[str]:
    return [f"  {line}" for line in textwrap.wrap(text, WIDTH - 2)]


def _lines(results: Results) -> list[list[str]]:
    head = header(results)
    left_out = CROWDED if results.is_unbalanced else LEFT_OUT
    shown = [i for i, title in enumerate(head) if title not in left_out]
    lines = [head, *result_rows(results)]
    if results.is_unbalanced:  # no room for this interval, which is below the table for the best one
        place = head.index("file %")
        for line in lines:
            line[place] = line[place].partition(" [")[0]
    return [[line[i] for i in shown] for line in lines]


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
