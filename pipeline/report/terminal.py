"""The table that the terminal shows at the end: everybody's numbers, the best marked, and where things are."""

from pathlib import Path

from pipeline.report.results import Results
from pipeline.report.words import COSTS, HEADER, fewest_seeds, percent, rows

WIDTH = 110
GAP = "  "


def table(results: Results, *, bundles: Path, report: Path) -> str:
    best = results.best
    return "\n".join(
        [
            *_columns([HEADER, *rows(results)]),
            "",
            f"* best on validation: {best.name} ({percent(best.validation)} % there). Accuracy, gain and agreement are on the test set.",
            "  ± is the spread over n seeds; the gain over the student alone has its 95 % interval"
            f"{'' if fewest_seeds(results) > 1 else ' (none from one seed)'}.",
            f"  {COSTS}",
            "",
            f"bundles   {bundles}/RUN   (best: {bundles / best.name})",
            f"report    {report}",
            "MLflow    make ui",
            "",
        ]
    )


def _columns(lines: list[list[str]]) -> list[str]:
    """Aligned text at most WIDTH wide; the two columns of names give way."""
    numbers = sum(max(len(line[i]) for line in lines) + len(GAP) for i in range(2, len(lines[0])))
    room = WIDTH - numbers - len(GAP)
    net = min(max(len(line[1]) for line in lines), room // 2)
    lines = [[_cut(line[0], room - net), _cut(line[1], net), *line[2:]] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        GAP.join(
            cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [aligned[0], "-" * max(map(len, aligned)), *aligned[1:]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
