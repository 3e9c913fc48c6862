"""What both networks output, and what a method matches with what: a table to read before the first step."""

from collections.abc import Iterable, Sequence

from pipeline.methods import Pairs
from pipeline.taps.answer import Answer

LAST = ("pooled", "logits")  # after all maps
COLUMNS = ("output", "student", "teacher", "matched with the teacher's")


def overview(student: Answer, teacher: Answer | None, pairs: Pairs) -> list[list[str]]:
    """A row for each map of either network, the pooled embedding and the logits: its name, its shape in the
    student and in the teacher (without the batch), and the names of what it is matched with."""
    of_student, of_teacher = (_shapes(answer) for answer in (student, teacher))
    names = [name for name in _by_depth(list(of_student), of_teacher) if name not in LAST] + [*LAST]
    matched = {
        name: ", ".join(dict.fromkeys(theirs for ours, theirs in pairs if ours == name)) for name in names
    }
    return [[name, of_student.get(name, ""), of_teacher.get(name, ""), matched[name]] for name in names]


def _by_depth(student: list[str], teacher: Iterable[str]) -> list[str]:
    """The names of both: those that only the teacher has come after the one that it has before them."""
    names, place = student, 0
    for name in teacher:
        if name in names:
            place = names.index(name) + 1
        else:
            names = [*names[:place], name, *names[place:]]
            place += 1
    return names


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows of an overview as text, under the names of the columns."""
    rows = [COLUMNS, *rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _shapes(answer: Answer | None) -> dict[str, str]:
    if answer is None:
        return {}
    return {name: " x ".join(map(str, output.shape[1:])) for name, output in answer.everything.items()}
