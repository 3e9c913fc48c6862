"""What logging costs: the curves of a training, and the rows in MLflow afterwards, as shares of the training.

    python -m experiments.logging_cost [--rounds 5] [--write FILE]

Run it in a project where `dvc repro` has ended; it changes nothing there. A round trains the last phase of
every run once more, while `make live` follows. It adds up the CPU time of what only the curves need: the
means of the terms, and the terms' shares of the gradient. Then it runs the stage `track` twice: into a new
database, and again with nothing new.
"""

import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from tqdm import tqdm

from experiments._script import parser_of, print_table
from pipeline.params import load_params
from pipeline.records import progress as progress_module
from pipeline.records.progress import progress
from pipeline.records.record import Record
from pipeline.runs.student import distill
from pipeline.track.follow import PAUSE
from pipeline.training import loop
from pipeline.training.monitor import Means, Shares

CURVES = ((Means, "add"), (Means, "take"), (Shares, "take"), (progress_module, "_write"))
SHARES = ((Shares, "add"), (loop, "gradient_shares"))


class Clock:
    """CPU seconds of all calls of the functions that it `watches`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def watches(self, *functions: tuple[Any, str]) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name))))
            yield

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.process_time() - start

        return timed


def training(folder: Path, work: Path) -> dict[str, float]:
    """CPU seconds of the last phases of all runs, and the part of them that only the curves need."""
    params, curves, shares = load_params(), Clock(), Clock()
    start = time.process_time()
    with curves.watches(*CURVES), shares.watches(*SHARES):
        for name in params.runs:
            run, record = params.run(name), Record("distill", name, {})
            folders = {
                "data": Path("data/prepared"),
                "teacher": Path("models/teachers") / run.teacher,
                "initial": Path("models/initial") / name,
                "out": folder / name,
                "work": work,
            }
            with progress(record, work / "live") as on_point:
                distill(run, **folders, code="", on_point=on_point)
    return {"training": time.process_time() - start, "curves": curves.seconds, "shares": shares.seconds}


@contextmanager
def followed(folder: Path) -> Iterator[dict[str, float]]:
    """`make live` beside the block; afterwards the dictionary holds the CPU seconds that it took."""
    taken: dict[str, float] = {}
    before = _children()
    command = [sys.executable, "-m", "pipeline.project", "live", "--work", str(folder / "work")]
    with subprocess.Popen(command, env=_environment(folder), stdout=subprocess.DEVNULL) as running:  # noqa: S603
        yield taken
        time.sleep(2 * PAUSE)  # so that it shows the last points
        running.terminate()
    taken["live"] = _children() - before


def rows(folder: Path) -> dict[str, float]:
    """CPU seconds of the stage `track`, into a new database and again."""
    command = shlex.split(yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["track"]["cmd"])
    assert command[:3] == ["handdown", "stage", "track"]
    command = [sys.executable, "-m", "pipeline.project", *command[1:]]
    command += ["--out", str(folder / "rows.json")]  # the last --out counts

    def seconds() -> float:
        before = _children()
        subprocess.run(command, env=_environment(folder), stdout=subprocess.DEVNULL, check=True)  # noqa: S603
        return _children() - before

    return {"fresh": seconds(), "again": seconds()}


def _environment(folder: Path) -> dict[str, str]:
    """With a database of its own."""
    return os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "DVC_ROOT": str(folder)}


def _children() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rounds: Sequence[dict[str, float]], count: int) -> str:
    """Markdown; `count` is the number of rows in MLflow."""
    lines: dict[str, Callable[[dict[str, float]], float]] = {
        "training": lambda each: each["training"],
        "curves, inside the training": lambda each: each["curves"],
        "shares of the gradient, inside the training": lambda each: each["shares"],
        "`make live` beside it, new database": lambda each: each["live"],
        "stage `track`: all rows, new database": lambda each: each["fresh"],
        "stage `track` again: nothing new": lambda each: each["again"],
        "a row with its trainings (the difference, over the rows)": lambda each: (
            (each["fresh"] - each["again"]) / count
        ),
    }
    return "\n".join(
        [
            "CPU seconds, and share of the training of all runs' last phases: median [smallest, largest] of "
            f"{len(rounds)} rounds; {count} rows.",
            "",
            "| what | CPU s | of the training |",
            "|---|--:|--:|",
            *(f"| {what} | {' | '.join(cells(rounds, seconds))} |" for what, seconds in lines.items()),
            "",
        ]
    )


def cells(
    rounds: Sequence[dict[str, float]], seconds: Callable[[dict[str, float]], float]
) -> tuple[str, str]:
    taken = [seconds(each) for each in rounds]
    shares = [seconds(each) / each["training"] for each in rounds]
    return (
        f"{statistics.median(taken):.3g} [{min(taken):.3g}, {max(taken):.3g}]",
        f"{statistics.median(shares):.2%} [{min(shares):.2%}, {max(shares):.2%}]",
    )


def main() -> None:
    parser = parser_of("logging_cost", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = []
    for _ in tqdm(range(given.rounds), desc="rounds", disable=None, leave=False):
        with tempfile.TemporaryDirectory() as live_folder, tempfile.TemporaryDirectory() as folder:
            with followed(Path(live_folder)) as live_seconds:
                seconds = training(Path(folder), work=Path(live_folder) / "work")
            rounds.append(seconds | live_seconds | rows(Path(folder)))
    params = load_params()
    print_table(table(rounds, len(params.runs) + len(params.teachers)), given.write)


if __name__ == "__main__":
    main()
