"""What it costs to tell: the curves while a student trains, and the rows in MLflow afterwards, as shares of the training.

    python -m benchmarks.logging_cost [--rounds 5] [--write FILE.md]

In a project where `dvc repro` has ended; nothing in it changes. A round trains every run's last phase once more, while `make live` looks
on, and adds up the CPU time of what only the curves need, which is inside the training's own: means of the terms, and looks at their
shares of the gradient. Then it runs the `track` stage twice as a process: into a database that isn't there yet, and again, with
nothing new.
"""

import argparse
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

from benchmarks.tell import tell
from pipeline import config, live, train
from pipeline.meters import Means, Shares
from pipeline.record import Record
from pipeline.runs import distill
from pipeline.track.follow import PAUSE

CURVES = ((Means, "add"), (Means, "take"), (Shares, "take"), (live, "_write"))
SHARES = ((Shares, "add"), (train, "gradient_shares"))


class Clock:
    """CPU seconds of all calls of what it `watches`."""

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


def training(place: Path, work: Path) -> dict[str, float]:
    """Of all runs' last phases: what they took, and what of it only the curves needed."""
    params, curves, shares = config.load(), Clock(), Clock()
    start = time.process_time()
    with curves.watches(*CURVES), shares.watches(*SHARES):
        for name, run in params.runs.items():
            teacher, initial = Path("models/teachers") / run.teacher, Path("models/initial") / name
            told, data = Record("distill", name, {}), Path("data/prepared")
            distill(params, name, told, data=data, teacher=teacher, initial=initial, out=place / name, work=work)
    return {"training": time.process_time() - start, "curves": curves.seconds, "shares": shares.seconds}


@contextmanager
def looked_on(place: Path) -> Iterator[dict[str, float]]:
    """Filled with the CPU seconds of `make live` meanwhile."""
    taken: dict[str, float] = {}
    before = _children()
    command = [sys.executable, "-m", "stages.live", "--work", str(place / "work"), "--port", "5000"]
    with subprocess.Popen(command, env=_own_store(place), stdout=subprocess.DEVNULL) as running:  # noqa: S603
        yield taken
        time.sleep(2 * PAUSE)  # the last points
        running.terminate()
    taken["live"] = _children() - before


def rows(place: Path) -> dict[str, float]:
    command = shlex.split(yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["track"]["cmd"])
    command = [sys.executable, *command[1:], "--out", str(place / "rows.json")]  # the last --out counts

    def seconds() -> float:
        before = _children()
        subprocess.run(command, env=_own_store(place), stdout=subprocess.DEVNULL, check=True)  # noqa: S603
        return _children() - before

    return {"fresh": seconds(), "again": seconds()}


def _own_store(place: Path) -> dict[str, str]:
    return os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}", "DVC_ROOT": str(place)}


def _children() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rounds: Sequence[dict[str, float]], count: int) -> str:
    def line(what: str, seconds: Callable[[dict[str, float]], float]) -> str:
        taken, shares = [seconds(each) for each in rounds], [seconds(each) / each["training"] for each in rounds]
        return (
            f"| {what} | {statistics.median(taken):.3g} [{min(taken):.3g}, {max(taken):.3g}] "
            f"| {statistics.median(shares):.2%} [{min(shares):.2%}, {max(shares):.2%}] |"
        )

    return "\n".join([
        f"CPU seconds and share of the training of all runs' last phases, median [smallest, largest], n {len(rounds)}; {count} rows.",
        "",
        "| what | CPU s | of the training |",
        "|---|--:|--:|",
        line("training", lambda each: each["training"]),
        line("curves, inside the training", lambda each: each["curves"]),
        line("looks at shares of the gradient, likewise", lambda each: each["shares"]),
        line("`make live` beside it, new database", lambda each: each["live"]),
        line("stage `track`: all rows, new database", lambda each: each["fresh"]),
        line("stage `track` again: nothing new", lambda each: each["again"]),
        line("a row (the difference, over the rows)", lambda each: (each["fresh"] - each["again"]) / count),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logging_cost", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = []
    for _ in tqdm(range(given.rounds), desc="rounds", disable=None, leave=False):
        with tempfile.TemporaryDirectory() as looking, tempfile.TemporaryDirectory() as place:
            with looked_on(Path(looking)) as taken:
                trained = training(Path(place), work=Path(looking) / "work")
            rounds.append(trained | taken | rows(Path(place)))
    params = config.load()
    tell(table(rounds, len(params.runs) + len(params.teachers)), given.write)


if __name__ == "__main__":
    main()
