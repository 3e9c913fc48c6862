"""Parts of the graph at the same time on one machine, each by a `dvc repro` of its own.

DVC runs one stage at a time. But while a stage works, DVC holds only the locks of the paths that this stage
reads and writes, so another `dvc repro` may run a stage that writes elsewhere. It must ask for that stage
alone (`-s`), because it would lock the stages before it for writing. And it must wait for the moments in
which the other one uses dvc.lock. So DVC itself records every stage.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import FrameType

from pipeline.project.ahead import Stage
from pipeline.project.dvc import dvc, start_dvc
from pipeline.project.parts import Part, cannot_begin, needed_by, parts, ready, slots
from pipeline.settings import InputError

KEPT = 25  # lines of a part that are shown again if it fails
HINTS = (  # of DVC, at the end of every part
    "To track the changes with git, run:",
    "git add dvc.lock",
    "To enable auto staging, run:",
    "dvc config core.autostage true",
    "Use `dvc push` to send your updates to remote storage.",
)
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Running:
    """A part at work."""

    part: Part
    slot: Mapping[str, str]
    process: "subprocess.Popen[str]"
    begun: float = field(default_factory=time.monotonic)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    follower: threading.Thread = field(init=False)


Events = SimpleQueue[Running | signal.Signals]


def side_by_side(stages: Sequence[Stage], jobs: int) -> None:
    """Run all of the graph that can run at the same time, `jobs` parts at once.

    What else there is, such as the benchmarks, which must have the machine for themselves, is left to do.
    """
    todo = begun(stages)
    if not todo:
        return
    free = free_slots(jobs)
    print(f"\n{_counted(len(todo))}, {jobs} at a time: {', '.join(part.name for part in todo)}", flush=True)
    failed, done = _Scheduler(todo, list(free)).run()
    if failed:
        raise InputError(_told(failed, done, cannot_begin(todo, list(failed))))


def free_slots(jobs: int) -> list[Mapping[str, str]]:
    """What each of the parts that run at the same time gets of this machine, as its environment."""
    own = cores()
    return slots(jobs, devices(), own, os.environ.get("OMP_NUM_THREADS", ""))


def cores() -> int:
    """Ask before torch is imported: that may let a process use all cores again, whatever `taskset` said."""
    return len(os.sched_getaffinity(0))


def begun(stages: Sequence[Stage]) -> list[Part]:
    """What can run at the same time, once what it needs has run; ends with the exit code of what fails."""
    todo = parts(stages)
    if (first := needed_by(todo, stages)) and (code := dvc("repro", *first)):
        sys.exit(code)
    return todo


class _Scheduler:
    """Starts a part wherever a slot is free, until all have ended."""

    def __init__(self, todo: Sequence[Part], free: list[Mapping[str, str]]) -> None:
        self.waiting, self.free = list(todo), free
        self.width = max(len(part.name) for part in todo)
        self.running: list[Running] = []
        self.done: list[str] = []
        self.failed: dict[str, Running] = {}
        self.events: Events = SimpleQueue()
        self.stopped: signal.Signals | None = None

    def run(self) -> tuple[dict[str, Running], list[str]]:
        """The parts that failed, and the names of those that did not. KeyboardInterrupt if it was stopped.

        Nothing is left running, whatever happens.
        """
        with _signals_to(self.events):
            try:
                self._until_all_have_ended()
            finally:
                self._interrupt()
                for running in self.running:
                    running.follower.join()
        if self.stopped:
            raise KeyboardInterrupt(self.stopped)
        return self.failed, self.done

    def _until_all_have_ended(self) -> None:
        self._start_what_can()
        while self.running:
            event = self.events.get()
            if isinstance(event, Running):
                self._ended(event)
            else:
                self.stopped = event
                self._interrupt()
            self._start_what_can()

    def _start_what_can(self) -> None:
        while self.free and not self.stopped and (part := ready(self.waiting, self.done)):
            self.waiting.remove(part)
            slot = self.free.pop(0)
            process = start_dvc("--wait-for-lock", "repro", "-s", *part.stages, environment=slot)
            running = Running(part, slot, process)
            self.running.append(running)
            running.follower = threading.Thread(target=self._follow, args=[running])
            running.follower.start()

    def _follow(self, running: Running) -> None:
        """Print what the part prints, each line with its name. In a thread of its own."""
        with running.process as process:
            assert process.stdout is not None
            for line in filter(_says_something, map(str.rstrip, process.stdout)):
                running.last.append(line)
                with suppress(OSError):  # nobody reads any more: `_ended` will see it
                    self._say(running.part, line)
        self.events.put(running)

    def _ended(self, running: Running) -> None:
        self.running.remove(running)
        self.free.append(running.slot)
        code, seconds = running.process.returncode, time.monotonic() - running.begun
        if code == 0:
            self.done.append(running.part.name)
        elif not self.stopped:
            self.failed[running.part.name] = running
        how = "done" if code == 0 else "stopped" if self.stopped else f"failed (exit code {code})"
        self._say(running.part, f"{how} after {seconds:.0f} s")

    def _interrupt(self) -> None:
        """As Ctrl-C on a terminal would: all that the parts have started."""
        for running in self.running:
            with suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGINT)

    def _say(self, part: Part, line: str) -> None:
        sys.stdout.write(f"{part.name:<{self.width}} | {line}\n")  # one write, so that no line is torn
        sys.stdout.flush()


@contextmanager
def _signals_to(events: Events) -> Iterator[None]:
    """Signals become events, so that none comes between the start of a process and its place in the list.

    Each part has a process group of its own: a terminal's Ctrl-C comes here alone, and is passed on once.
    What is ignored here, as Ctrl-C is in the background of a shell, gets a handler that does nothing: so the
    parts do not begin with it ignored, and can be stopped.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        events.put(signal.Signals(number))

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    ignored = {number for number in STOPS if signal.getsignal(number) == signal.SIG_IGN}
    usual = {number: signal.signal(number, ignore if number in ignored else pass_on) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _says_something(line: str) -> bool:
    return bool(line) and line.strip() not in HINTS


def devices() -> list[str]:
    """The GPUs that torch finds, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(n) for n in range(count)]


def _counted(n: int) -> str:
    return f"{n} part{'s' * (n > 1)} of the graph"


def _told(failed: Mapping[str, Running], done: Sequence[str], blocked: Mapping[str, str]) -> str:
    """What failed, after the last lines of each, and what became of the others."""
    for name, running in failed.items():
        print(f"\nThe last lines of {name}:", *running.last, sep="\n", file=sys.stderr, flush=True)
    words = [f"{', '.join(failed)} failed: see the lines above."]
    for cause in dict.fromkeys(blocked.values()):
        names = [name for name in blocked if blocked[name] == cause]
        words.append(f"{', '.join(names)} did not begin, because {cause} failed.")
    if done:
        words.append(f"{', '.join(done)} ended well, and will not run again.")
    return " ".join([*words, "Remove the cause, then run this again."])
