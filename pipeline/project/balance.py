"""A suggestion for a method's `term_weight`."""

import sys
from pathlib import Path

from pipeline.project.dvc import dvc


def balance(
    name: str,
    data: Path = Path("data/prepared"),
    teachers: Path = Path("models/teachers"),
    initial: Path = Path("models/initial"),
) -> None:
    """Suggest a `term_weight` for a run: the weight that gives its terms half of the student's gradient."""
    if code := dvc("repro", "-q", f"pretrain@{name}"):
        sys.exit(code)
    from pipeline.params import load_params
    from pipeline.runs.term_balance import balance_run

    run = load_params().run(name)
    found = balance_run(run, data=data, teacher=teachers / run.teacher, initial=initial / name)
    print(
        f"{name}: with method.term_weight {run.method.term_weight:g}, its terms have {found.share:.1%} of "
        f"the student's gradient (median of {found.steps} steps).\n"
        f"With {found.weight:.2g} they would have half of it "
        f"(quartiles {found.low:.2g} to {found.high:.2g}).\n"
        "Half is a start, not an optimum: try some weights around it and choose on validation."
    )
