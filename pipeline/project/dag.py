"""A page that draws the graph: what each stage needs, what is up to date, and how long it took."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.files import atomic_file
from pipeline.project.ahead import Stage, stages_ahead
from pipeline.project.locks import mend_locks
from pipeline.records.place import about

WIDTH, HEIGHT, GAP, ROW = 98, 34, 16, 44  # of a box, between two columns, from box to box of a column
COLOURS = {"up to date": "#d8ecd9", "cached": "#dfe6f5", "runs": "#fbe3c4"}
SHORT = {"up to date": "up to date", "cached": "in DVC's cache", "runs": "would run"}
WORDS = {
    "up to date": "up to date",
    "cached": "changed, but DVC's cache has what it would make",
    "runs": "would run (it, or a stage before it, has changed)",
}
OF_TEACHERS = ("teacher", "knowledge")  # their keys are no runs
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>The graph</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }}
  .page {{ overflow-x: auto }}
  svg text {{ font: 11px system-ui, sans-serif; fill: #222 }}
  svg .time {{ fill: #555 }}
  svg rect {{ stroke: #8886 }}
  svg path {{ fill: none; stroke: #999 }}
  .key span {{ display: inline-block; width: 1em; height: 1em; border: 1px solid #8886 }}
  .key span {{ margin: 0 .4em -.15em 1em }}
</style>
<h1>The graph</h1>
<p>{summary}</p>
<p class="key">{key}</p>
<div class="page">{drawing}</div>
</html>
"""


def dag(out: Path = Path("reports/graph.html"), records: Path = Path("records")) -> None:
    """Draw the graph as a page: its stages, how long they took, what is up to date and what would run."""
    mend_locks()
    stages = stages_ahead()
    took = {stage.name: seconds for stage in stages if (seconds := _seconds(stage, records)) is not None}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write_text(page(stages, took), encoding="utf-8")
    print(f"{summary(stages, took)}\n{out} draws it.")


def _seconds(stage: Stage, records: Path) -> float | None:
    """What its record says; None if there is no record of it."""
    try:
        file = records / stage.kind / f"{stage.key}.json" if stage.key else records / f"{stage.kind}.json"
        return float(json.loads(file.read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def page(stages: Sequence[Stage], took: Mapping[str, float]) -> str:
    key = "".join(
        f'<span style="background: {COLOURS[state]}"></span>{words}' for state, words in WORDS.items()
    )
    return PAGE.format(summary=html.escape(summary(stages, took)), key=key, drawing=drawing(stages, took))


def summary(stages: Sequence[Stage], took: Mapping[str, float]) -> str:
    states = [stage.state for stage in stages]
    counts = ", ".join(f"{states.count(state)} {words}" for state, words in SHORT.items() if state in states)
    last = (
        f" They took {about(sum(took.values())).removeprefix('about ')} when they last ran." if took else ""
    )
    return f"{len(stages)} stages: {counts}.{last}"


def drawing(stages: Sequence[Stage], took: Mapping[str, float]) -> str:
    """The stages as boxes, each to the right of all that it needs, and a line for each need."""
    places = places_of(stages)
    columns = 1 + max((column for column, _ in places.values()), default=0)
    rows = 1 + max((row for _, row in places.values()), default=0)
    size = columns * (WIDTH + GAP), rows * ROW + 2
    lines = [_line(places[first], places[then]) for first, then in direct_needs(stages)]
    boxes = [_box(stage, places[stage.name], took.get(stage.name)) for stage in stages]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" role="img">'
    return "\n".join([head, *lines, *boxes, "</svg>"])


def places_of(stages: Sequence[Stage]) -> dict[str, tuple[int, int]]:
    """Column and row of each stage: one column further than all that it needs. A run keeps its row."""
    runs = list(dict.fromkeys(run for stage in stages if (run := _run_of(stage))))
    found: dict[str, tuple[int, int]] = {}
    for stage in stages:  # each comes after all that it needs
        column = 1 + max((found[name][0] for name in stage.before if name in found), default=-1)
        row = runs.index(_run_of(stage)) if _run_of(stage) else 0
        while (column, row) in found.values():
            row += 1
        found[stage.name] = column, row
    return found


def _run_of(stage: Stage) -> str:
    return "" if stage.kind in OF_TEACHERS else stage.key


def direct_needs(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Pairs of stages, without those that follow from others: what needs both a and what needs a."""
    above: dict[str, set[str]] = {}
    for stage in stages:
        needs = [name for name in stage.before if name in above]
        above[stage.name] = {*needs, *(far for name in needs for far in above[name])}
    return [
        (name, stage.name)
        for stage in stages
        for name in stage.before
        if name in above and not any(name in above[other] for other in stage.before if other in above)
    ]


def _line(first: tuple[int, int], then: tuple[int, int]) -> str:
    (x, y), (to_x, to_y) = (
        (column * (WIDTH + GAP), row * ROW + 1 + HEIGHT / 2) for column, row in (first, then)
    )
    x += WIDTH
    middle = to_x - GAP / 2
    return f'<path d="M{x} {y:g} C{x + GAP} {y:g} {middle:g} {to_y:g} {to_x} {to_y:g}"/>'


def _box(stage: Stage, place: tuple[int, int], seconds: float | None) -> str:
    x, y = place[0] * (WIDTH + GAP), place[1] * ROW + 1
    time = "" if seconds is None else f"{seconds:.1f} s"
    told = html.escape(f"{stage.name}: {WORDS[stage.state]}")
    second = html.escape(" · ".join(filter(None, (_short(stage.key), time))))
    return (
        f'<g><title>{told}</title><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" '
        f'fill="{COLOURS[stage.state]}"/><text x="{x + 6}" y="{y + 14}">{html.escape(stage.kind)}</text>'
        f'<text class="time" x="{x + 6}" y="{y + 28}">{second}</text></g>'
    )


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
