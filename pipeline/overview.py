"""What both networks show and what a method matches with what: a table to look at before the first step."""

from collections.abc import Sequence

from pipeline.methods.base import Pairs
from pipeline.taps import View

COLUMNS = ("stage", "student", "teacher", "meets the teacher's")


def overview(student: View, teacher: View | None, pairs: Pairs) -> list[list[str]]:
    """A row for everything that either network shows, shapes without the batch; the last column says its partners."""
    shown = [{name: shape(part.shape[1:]) for name, part in view.shown.items()} if view else {} for view in (student, teacher)]
    names = dict.fromkeys([*student.stages, *(teacher.stages if teacher else ()), "pooled", "logits"])
    partners = {name: ", ".join(dict.fromkeys(theirs for ours, theirs in pairs if ours == name)) for name in names}
    return [[name, shown[0].get(name, ""), shown[1].get(name, ""), partners[name]] for name in names]


def shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def table(rows: Sequence[Sequence[str]]) -> str:
    rows = [COLUMNS, *rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
