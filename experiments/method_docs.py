"""The page on all methods, made from their docstrings and settings.

    python -m experiments.method_docs [--write docs/methods.md] [--check]

Without options the page is printed. `--check` fails if docs/methods.md is not this page.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from experiments._script import parser_of
from experiments.method_cost import Setup, World
from pipeline import methods
from pipeline.files import atomic_file
from pipeline.methods import MethodConfig

PAGE = Path("docs/methods.md")
TINY = Setup(teacher="resnet14", student="resnet8", size=16, channels=3, classes=3, batch_size=8, examples=8)
INTRODUCTION = """\
# Methods

`make docs` writes this page from `pipeline/methods/`. To change it, change a docstring or a setting there.

A run names its method by the name in the first column:

```yaml
runs:
  fitnet: {teacher: big, student: small, method: {name: fitnet, joint: true}}
```

The total loss of a method is
`ce_weight * CE + kd_weight * tau^2 * KL(teacher || student) + term_weight * the method's own terms`.

"Matches" says what of the student is matched with the same of the teacher, with the default settings. How the
methods compare: [results.md](results.md). What we learned about them: [findings.md](findings.md). What a step
costs: [method_cost.md](method_cost.md).
"""
COMMON = """\
## Settings of every method

A section below repeats a setting only if its default or its meaning differs.
"""
PUBLISHED = """
## What newer methods reach in their papers

Top-1 accuracy in % on the test images of CIFAR-100, with the recipe of the CRD paper: 240 epochs, batches of
64, SGD with Nesterov momentum and lr 0.05, divided by 10 at epochs 150, 180 and 210. These are the papers'
figures, not ours; ours are in [results.md](results.md). Teachers and students alone are those of the CRD
paper.
"""
SOURCES = """
The figures are from the tables of the papers and of the authors' pages. Those of `reviewkd` are as the paper
on `dkd` repeats them. Those of `dist` with WRN-40-2, vgg13 and resnet110 are as the paper on `ttm` reproduced
them.
"""
PAIRS = (
    "resnet32x4 -> resnet8x4",
    "WRN-40-2 -> WRN-16-2",
    "vgg13 -> vgg8",
    "resnet56 -> resnet20",
    "resnet110 -> resnet32",
)
FIGURES = (
    ("teacher", "79.42 75.61 74.64 72.34 74.31", ""),
    ("student alone", "72.50 73.26 70.36 69.06 71.14", ""),
    ("`kd`", "73.33 74.92 72.98 70.66 73.08", "labels 0.1, KD 0.9, tau 4"),
    ("`kd`, standardised", "76.62 76.11 74.36 71.43 74.17", "labels 0.1, KD 9, tau 2 (vgg: 3)"),
    ("`reviewkd`", "75.63 76.12 74.84 71.89 73.89", "weight 5 (resnet56: 0.6, resnet110: 1)"),
    ("`dkd`", "76.32 76.24 74.68 71.97 74.11", "beta 8 (WRN and vgg: 6, resnet56 and resnet110: 2)"),
    ("`dkd`, standardised", "77.01 76.39 74.81 72.32 74.29", "alpha and beta times 9, tau 2"),
    ("`dist`", "76.31 75.51 73.89 71.75 73.69", "weight 2, tau 4"),
    ("`ttm`", "76.17 76.23 74.33 71.83 73.97", "a weight and a tau for each pair"),
    ("`wttm`", "76.06 76.37 74.44 71.92 74.13", "a weight and a tau for each pair"),
    ("`mlkd`", "77.08 76.63 75.18 72.19 74.11", "two views of each image"),
    (
        "`mlkd`, standardised",
        "78.28 76.95 75.22 72.33 74.32",
        "two views of each image, weights times 9, tau 2",
    ),
)
PHASES = """
A phase with a star reads the teacher alone, so it can be
[learned once for many students](sweeps.md#learn-from-the-teacher-once).
"""
TYPES: dict[Any, str] = {
    float: "number",
    int: "whole number",
    bool: "true or false",
    str: "name",
    tuple[str, ...]: "list of names",
    tuple[float, ...]: "list of numbers",
    dict[str, Any]: "settings",
}
COLUMNS = ["setting", "type", "default", "legal", "what it is"]
LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def page() -> str:
    """The whole page, in Markdown."""
    world = World(TINY)
    names = methods.names()
    overview = [[f"[{name}](#{name})", *phases_and_matches(world, name), title(name)] for name in names]
    common = [row(name, field) for name, field in MethodConfig.model_fields.items() if name != "name"]
    parts = [
        INTRODUCTION,
        table(["method", "phases", "matches", "what it is"], overview),
        PHASES,
        PUBLISHED,
        table(["method", *PAIRS, "its settings"], [[name, *row.split(), how] for name, row, how in FIGURES]),
        SOURCES,
        COMMON,
        table(COLUMNS, common),
        *(section(name) for name in names),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in cells] for cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def phases_and_matches(world: World, name: str) -> tuple[str, str]:
    """The names of the phases, and the kinds of what is matched, for networks of ours."""
    method, student, _ = world.method(name)
    phases = (f"{phase.name}{'*' if phase.of_teacher else ''}" for phase in method.phases(student))
    kinds = [(kind_of(own), kind_of(other)) for own, other in method.matched()]
    matches = (own if own == other else f"{own} with the teacher's {other}" for own, other in kinds)
    return ", ".join(phases).replace("*", "\\*"), ", ".join(dict.fromkeys(matches))


def kind_of(name: str) -> str:
    return name if name in ("pooled", "logits") else "maps"


def docstring(name: str) -> str:
    return inspect.getdoc(importlib.import_module(f"pipeline.methods.{name}")) or ""


def title(name: str) -> str:
    """The first paragraph of the docstring: the method and its paper."""
    return markdown(" ".join(docstring(name).partition("\n\n")[0].split()))


def section(name: str) -> str:
    """What one method is, and its settings."""
    text = f"## {name}\n\n{markdown(docstring(name))}\n"
    common = MethodConfig.model_fields
    own = [
        row(key, field, common.get(key))
        for key, field in methods.load(name).Config.model_fields.items()
        if key != "name" and not same(field, common.get(key))
    ]
    return f"{text}\n{table(COLUMNS, own)}" if own else text


def markdown(text: str) -> str:
    """Plain text as Markdown: outside of code, `<` is a sign and no tag."""
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)


def same(field: FieldInfo, common: FieldInfo | None) -> bool:
    """Whether a method leaves one of the common settings as it is."""
    return common is not None and (
        field.get_default(call_default_factory=True) == common.get_default(call_default_factory=True)
        and limits(field) == limits(common)
        and (field.description or common.description) == common.description
    )


def row(name: str, field: FieldInfo, common: FieldInfo | None = None) -> list[str]:
    """A line of a table of settings."""
    options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    default = json.dumps(field.get_default(call_default_factory=True)).strip('"')
    description = field.description or (common.description if common else None) or ""
    return [
        f"`{name}`",
        "choice" if options else TYPES[field.annotation],
        literal(default),
        ", ".join(map(literal, options)) or limits(field),
        markdown(description),
    ]


def literal(value: str) -> str:
    return f"`{value}`" if value else "empty"


def limits(field: FieldInfo) -> str:
    """The legal range of a number, such as `> 0, ≤ 1`."""
    return ", ".join(
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in LIMITS.items()
        if hasattr(limit, name)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("method_docs", __doc__)
    parser.add_argument("--write", type=Path, help=f"a file for the page, such as {PAGE}")
    parser.add_argument("--check", action="store_true", help=f"fail if {PAGE} is not this page")
    given = parser.parse_args(arguments)
    text = page()
    if given.write:
        with atomic_file(given.write) as partial:
            partial.write_text(text)
    if given.check and (not PAGE.exists() or PAGE.read_text() != text):
        sys.exit(f"{PAGE} is not what the code says. Run `make docs`.")
    if not given.write and not given.check:
        print(text, end="")


if __name__ == "__main__":
    main()
