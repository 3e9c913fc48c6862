"""How long one image takes: the one number that the card, the table, the report, MLflow and the budgets give.

Each file is opened in a fresh process without torch, as where it will serve, and computes on one thread. The
processes take short turns, so that a busy moment of the machine affects all of them alike.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from pipeline.export import worker
from pipeline.files import save_array
from pipeline.settings import InputError

TURN = 0.02  # seconds
SECONDS = 0.3  # for each file
THREADS, BATCH = 1, 1
WORDS = "median of single images (batch 1) on one thread of the CPU"
ROOT = Path(__file__).parents[2]
Key = TypeVar("Key")


class Times(NamedTuple):
    """Seconds of single calls."""

    wall: list[float]
    cpu: list[float]


@dataclass
class Process:
    """A process that runs `worker.serve`."""

    name: str
    questions: IO[str]
    answers: IO[str]
    memory_mb: float = 0.0

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self.questions.write(json.dumps(question) + "\n")
            self.questions.flush()
            line = self.answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(
                f"benchmark: the process that measures {self.name} ended without an answer. "
                "It may have run out of memory."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InputError(f"benchmark: {self.name} cannot be measured: {answer['error']}")
        return answer


def measure(files: Mapping[str, Path], image: np.ndarray) -> dict[str, float]:
    """Median milliseconds of one image (1 x H x W x C, uint8) on one thread, of each ONNX file."""
    with ExitStack() as stack:
        pixels = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "image.npy"
        save_array(pixels, image)
        processes = {
            name: stack.enter_context(fresh("onnx", file, THREADS, pixels)) for name, file in files.items()
        }
        for process in processes.values():
            process.ask({})
        times = take_turns(processes, BATCH, SECONDS)
    return {name: round(1000 * float(np.median(taken.wall)), 4) for name, taken in times.items()}


@contextmanager
def fresh(runtime: str, file: Path, threads: int, images: Path) -> Iterator[Process]:
    """A process for a file, which it opens when it is first asked something."""
    command = [sys.executable, "-m", "pipeline.export.worker", runtime]
    command += [str(file.absolute()), str(threads), str(images)]
    pipe = subprocess.PIPE
    # a group of its own, so that a terminal's Ctrl-C does not reach it: it ends when nobody asks any more
    with subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        stdin=pipe,
        stdout=pipe,
        text=True,
        process_group=0,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with closing_quietly(child.stdin) as questions:
            yield Process(file.name, questions, child.stdout)


@contextmanager
def closing_quietly(questions: IO[str]) -> Iterator[IO[str]]:
    """Close them in the end, even if nobody is there any more to read the last one."""
    try:
        yield questions
    finally:
        with suppress(BrokenPipeError):
            questions.close()


def take_turns(processes: Mapping[Key, Process], batch: int, seconds: float) -> dict[Key, Times]:
    """The times of each process for a batch, measured in short turns."""
    times = {key: Times([], []) for key in processes}
    while unfinished := [
        key for key, taken in times.items() if sum(taken.wall) < seconds or len(taken.wall) < worker.FEWEST
    ]:
        for key in unfinished:
            answer = processes[key].ask({"batch": batch, "seconds": TURN})
            times[key].wall.extend(answer["wall"])
            times[key].cpu.extend(answer["cpu"])
            processes[key].memory_mb = answer["memory_mb"]
    return times
