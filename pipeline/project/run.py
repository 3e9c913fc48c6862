"""Commands that run the graph."""

import sys
from pathlib import Path

from pipeline.project.ahead import ALWAYS, stages_ahead
from pipeline.project.dvc import dvc, quiet_dvc
from pipeline.project.locks import mend_locks
from pipeline.project.parts import check_jobs
from pipeline.project.plan import keep_plan
from pipeline.project.plots_page import write_plots_page
from pipeline.project.side_by_side import side_by_side

# what `dvc exp show` would list beside the parameters and scores that a person compares
NOT_COMPARED = (
    r"(data|models|my_nets|pipeline|plots|records|reports|stages)(/|$)|params\.yaml$"
    r"|metrics/.*:(?!accuracy_test_mean|balanced_accuracy|gain|macro_f1|score_val)"
)


def check() -> None:
    """Say what is wrong in params.yaml, and which stages would run again because code has changed."""
    mend_locks()
    first = ALWAYS[0] if Path("tool/dvc.yaml").is_file() else ALWAYS[1]
    if code := quiet_dvc("repro", "-f", "-s", first, "check"):
        sys.exit(code)
    print("params.yaml is sound.")


def run(jobs: int = 1) -> None:
    """Run what changed in the graph, `jobs` runs at a time, then print the table of results."""
    check_jobs(jobs)
    mend_locks()
    write_plots_page()
    stages = stages_ahead()
    keep_plan(stages, jobs=jobs)
    if jobs > 1:
        side_by_side(stages, jobs)
    if code := dvc("repro"):
        sys.exit(code)
    print(Path("reports/table.txt").read_text(), end="")


def tries() -> None:
    """Compare what was tried with `dvc exp run`: the parameters that differ, accuracies and gains."""
    sys.exit(dvc("exp", "show", "--only-changed", "--drop", NOT_COMPARED))


def track() -> None:
    """Write the rows that are missing in MLflow, after a server was down or a database was lost."""
    mend_locks()
    sys.exit(dvc("repro", "-f", "-s", "track"))
