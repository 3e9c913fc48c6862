"""A small project whose stages run each in a process of its own, are stopped there, or lack room on the disk.

A stage is a copy (fork) of this process, so that what all stages import is imported once. Of several
processes, each is a copy too, started by the launcher that `torchrun` is.
"""

import contextlib
import faulthandler
import hashlib
import importlib
import json
import logging
import os
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml
from fabricated import fabricate
from small_disk import on_small_disk
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from world import save_pictures

import stages
from pipeline.project import command
from pipeline.training import state

SLOW = ("torch._dynamo", "onnxscript", "mlflow.store.tracking.sqlalchemy_store")  # to import
FIRST_TIME = 1800.0  # seconds after which a stage hangs, until it is known how long it takes
OFTEN, LEAST = 20, 120.0  # then so many times as long, or so many seconds: other processes share the cores
RUN = {"teacher": "big", "student": "small", "seeds": [0]}
PARAMS: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "folder", "root": "pictures", "size": 8, "val": 0.2, "test": 0.3},
    "augment": {"pad": 1, "flip": 0.5, "mixup": 0.2},
    "protocol": {"shots": 4},
    "train": {"epochs": 12, "batch_size": 4, "lr": 0.01, "ema": 0.9},
    "teachers": {
        "big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 3, "batch_size": 8, "lr": 0.01}}
    },
    "knowledge": {
        "atoms": {"teacher": "big", "method": {"name": "srm"}, "phases": {"dictionary": {"epochs": 3}}}
    },
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {
        "hints": RUN | {"method": {"name": "fitnet", "kd_weight": 1.0}, "phases": {"hint": {"epochs": 4}}},
    },
    "analysis": {},
    "export": {"parity_images": 20},
    "benchmark": {"batches": [1], "seconds": 0.01},
}
PREPARED, OF_RUN = "--data data/prepared", "--name hints"
TRAINING = f"{PREPARED} --code code --work .work"
STUDENTS = "--students models/students/hints"
OPTIONS = {  # that dvc.yaml gives
    "check": "--code records/code --classes records/classes.json --analysed records/analyse/runs.txt "
    "--learned records/knowledge/names.txt",
    "prepare": f"{PREPARED} --work .work --record records/prepare.json",
    "trial": f"{PREPARED} --out records/trial.txt",
    "views": f"{PREPARED} --out data/views.png",
    "teacher": f"{TRAINING} --name big --out models/teachers/big --record records/teacher/big.json",
    "knowledge": f"{TRAINING} --name atoms --teacher models/teachers/big --out models/teachers/atoms "
    "--record records/knowledge/atoms.json",
    "pretrain": f"{TRAINING} {OF_RUN} --teacher models/teachers/big --out models/initial/hints "
    "--record records/pretrain/hints.json",
    "distill": f"{TRAINING} {OF_RUN} --teacher models/teachers/big --initial models/initial/hints "
    "--out models/students/hints --record records/distill/hints.json",
    "analyse": f"{PREPARED} {OF_RUN} --teachers models/teachers --initial models/initial/hints {STUDENTS} "
    "--distilled records/distill/hints.json --pictures records/analyse/hints "
    "--record records/analyse/hints.json",
    "evaluate": f"{PREPARED} {OF_RUN} --teacher models/teachers/big {STUDENTS} "
    "--predictions records/evaluate/hints.npz --work .work --record records/evaluate/hints.json",
    "export": f"{PREPARED} {OF_RUN} {STUDENTS} --distilled records/distill/hints.json "
    "--evaluated records/evaluate/hints.json --out models/export/hints --record records/export/hints.json",
    "benchmark": f"{PREPARED} {OF_RUN} --teacher models/teachers/big {STUDENTS} "
    "--bundle models/export/hints --record records/benchmark/hints.json",
    "report": f"--records records --bundles models/export {PREPARED} --views data/views.png "
    "--reports reports --plots plots --metrics metrics",
    "track": "--records records --bundles models/export --reports reports --plots plots "
    "--out reports/mlflow.json",
}
ASIDE = ("check", "trial", "knowledge", "analyse", "benchmark")  # no other stage of this project needs them
TRAIN = ("teacher", "knowledge", "pretrain", "distill")  # these may have several processes, and fixed views
SAME = {  # what must be the same, byte by byte, however often the stage was stopped
    "check": ["records/code", "records/classes.json", "records/analyse/runs.txt", "records/knowledge"],
    "prepare": ["data/prepared"],
    "trial": ["records/trial.txt"],
    "views": ["data/views.png"],
    "teacher": ["models/teachers/big"],
    "knowledge": ["models/teachers/atoms"],
    "pretrain": ["models/initial/hints"],
    "distill": ["models/students/hints"],
    "analyse": ["records/analyse/hints"],
    "evaluate": ["records/evaluate/hints.npz"],
    "export": ["models/export/hints/student.onnx", "models/export/hints/student.safetensors"],
    "benchmark": [],
    "report": ["metrics", "plots/confusion"],
    "track": [],
}
MADE = {  # what else it makes, and DVC removes before it runs
    "prepare": ["records/prepare.json"],
    "teacher": ["records/teacher/big.json"],
    "knowledge": ["records/knowledge/atoms.json"],
    "pretrain": ["records/pretrain/hints.json"],
    "distill": ["records/distill/hints.json"],
    "analyse": ["records/analyse/hints.json"],
    "evaluate": ["records/evaluate/hints.json"],
    "export": ["models/export/hints", "records/export/hints.json"],
    "benchmark": ["records/benchmark/hints.json"],
    "report": ["plots", "reports"],
    "track": ["mlflow.db", "mlartifacts", "reports/mlflow.json"],
}


class BrokenError(Exception):
    """A promise was broken; the text says how."""


def demand(holds: object, otherwise: str) -> None:
    if not holds:
        raise BrokenError(otherwise)


@dataclass(frozen=True)
class Way:
    """A stage, and how it runs."""

    stage: str
    processes: int = 1
    has_fixed_views: bool = False

    def __str__(self) -> str:
        views = ", fixed views" if self.has_fixed_views else ""
        return f"{self.stage} ({self.processes} at a time{views})"


@dataclass(frozen=True)
class Stop:
    """A signal, so many seconds after the start. It goes to the process that was started, to all of them as
    from a terminal, or to one that this one started."""

    after: float
    number: int = signal.SIGKILL
    to: str = "one"  # or all, child


@dataclass(frozen=True)
class Shortage:
    """No file may be larger than so many bytes, and no more room is left on the disk; 0: no limit."""

    largest: int = 0
    room: int = 0


@dataclass(frozen=True)
class Ended:
    code: int  # as a shell tells it: negative if a signal ended it
    printed: str
    seconds: float


# --- processes


def run(
    place: Path,
    way: Way,
    *,
    limit: float,
    stop: Stop | None = None,
    shortage: Shortage | None = None,
    save_every: float = 20.0,
) -> Ended:
    """Run a stage in a copy of this process, until it and all that it started have ended."""
    read, write = os.pipe()
    begun = time.monotonic()
    stops = (signal.SIGINT, signal.SIGTERM)  # as usual in the copy, until the stage begins
    own = [signal.signal(number, signal.SIG_DFL) for number in stops]
    if not (child := os.fork()):
        os.close(read)
        _become(place, way, write, shortage or Shortage(), save_every)
    for number, handler in zip(stops, own, strict=True):
        signal.signal(number, handler)
    os.close(write)
    with contextlib.suppress(OSError):  # it may have done so itself, or be over
        os.setpgid(child, child)
    left: list[int] = []  # processes of the stage that are there when time is up
    timers = [threading.Timer(limit, partial(_end_all, child, left))]
    if stop is not None:
        timers.append(threading.Timer(stop.after, partial(_send, child, stop)))
    for timer in timers:
        timer.start()
    with os.fdopen(read, errors="replace") as stream:
        printed = stream.read()
    _, status = os.waitpid(child, 0)
    for timer in timers:
        timer.cancel()
        timer.join()
    seconds = time.monotonic() - begun
    is_launcher_alone = way.processes > 1 and not left
    demand(seconds < limit or is_launcher_alone, f"{way} hangs, {seconds:.0f} seconds: {printed[-6000:]}")
    return Ended(os.waitstatus_to_exitcode(status), printed, seconds)


def _end_all(child: int, left: list[int]) -> None:
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        left.extend(each.pid for each in psutil.Process(child).children(recursive=True))
        for each in (*left, child):
            os.kill(each, signal.SIGUSR1)  # where does it hang?
        time.sleep(1)
    _send(child, Stop(0.0, to="all"))


def _send(child: int, stop: Stop) -> None:
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if stop.to == "all":
            os.killpg(child, stop.number)
        elif stop.to == "child" and (started := psutil.Process(child).children()):
            os.kill(started[-1].pid, stop.number)
        else:
            os.kill(child, stop.number)


def _become(place: Path, way: Way, write: int, shortage: Shortage, save_every: float) -> NoReturn:
    """Be the process of a stage, and end."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        work = partial(_work, way=way, largest=shortage.largest, save_every=save_every)
        code = on_small_disk(place, shortage.room, work) if shortage.room else work(place)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _work(place: Path, *, way: Way, largest: int, save_every: float) -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.chdir(place)
    os.environ["DVC_ROOT"] = str(place)  # where the rows of stage track go
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    state.SAVE_EVERY, state.SAVE_SHARE, state.ASK_EVERY = save_every, 1.0, min(save_every, 1.0)
    code = _call(way.stage) if way.processes == 1 else _launch(way)
    _flush()
    return code


def _call(stage: str) -> int:
    """The exit code of a stage in this process."""
    module = importlib.import_module(f"stages.{stage}")
    signal.signal(signal.SIGINT, stages._end)  # as where a stage is started by its name
    try:
        command.command(module.stage, arguments=OPTIONS[stage].split())
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def _launch(way: Way) -> int:
    """Be `torchrun --nproc-per-node N -m stages.NAME`; it finds a free port."""
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.disable()  # the launcher's own tracebacks
    sys.unraisablehook = lambda unraisable: None  # these too
    os.register_at_fork(after_in_child=_heed_signals)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=way.processes,
        run_id="soak",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="fork",
    )
    try:
        elastic_launch(config, _be_one_of_them)(way.stage)
    except ChildFailedError:
        return 1
    except OSError as error:  # of the launcher, before a stage begins
        print(f"Error: {error}")
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _heed_signals() -> None:
    """The launcher has handlers of its own."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _be_one_of_them(stage: str) -> None:
    """Return if the stage ends well, as the launcher expects; else end this process."""
    code = 1
    try:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = sys.__unraisablehook__
        is_first = os.environ["RANK"] == "0"
        for module in (command, importlib.import_module(f"stages.{stage}")):
            module.FIRST = is_first  # type: ignore[attr-defined]  # imported before there was a rank
        code = _call(stage)
    except BaseException:
        traceback.print_exc()
    _flush()
    if code:
        os._exit(code)


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


# --- the project


class Graph:
    """A small project whose stages all ended well, once; cases work on copies of it."""

    def __init__(self, place: Path) -> None:
        self.place = place / "whole"
        self.undisturbed: dict[Way, tuple[str, float]] = {}  # the digest of what it made, and seconds
        self.place.mkdir()
        save_pictures(self.place / "pictures", 90, size=10)
        (self.place / "code").write_text("c")
        (self.place / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
        (self.place / "dvc.lock").write_text("stages: {}\n")
        self._fabricate_benchmark()
        # once, since each stage is a copy of this process
        for name in (*SLOW, *(f"stages.{stage}" for stage in OPTIONS)):
            importlib.import_module(name)
        for stage in OPTIONS:
            if stage not in ASIDE:
                self._keep(Way(stage), self.place)
        self.bundle = self.place / "models/export/hints"
        self.count = 0

    def _fabricate_benchmark(self) -> None:
        """Its record, since it takes longer than all other stages together."""
        with tempfile.TemporaryDirectory() as name:
            record = json.loads((fabricate(Path(name)) / "benchmark/kd.json").read_text())
        file = self.place / "records/benchmark/hints.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(record | {"name": "hints"}))

    def _keep(self, way: Way, place: Path) -> None:
        ended = run(place, way, limit=FIRST_TIME)
        demand(ended.code == 0, f"{way} does not run at all: {ended.printed[-2000:]}")
        self.undisturbed[way] = digest(place, SAME[way.stage]), ended.seconds

    def seconds(self, way: Way) -> float:
        """How long it takes undisturbed, in this hour on this machine."""
        if way not in self.undisturbed:
            with self.copy(way) as place:
                self._keep(way, place)
        return self.undisturbed[way][1]

    def limit(self, way: Way) -> float:
        """After so many seconds it hangs."""
        return max(LEAST, OFTEN * self.seconds(way))

    @contextlib.contextmanager
    def copy(self, way: Way) -> Iterator[Path]:
        """A copy in which the stage has not run yet."""
        self.count += 1
        place = self.place.with_name(f"copy-{self.count}")
        shutil.copytree(self.place, place, symlinks=True)
        for name in (*SAME[way.stage], *MADE.get(way.stage, [])):
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        changes: dict[str, Any] = {}
        if way.has_fixed_views:
            changes["augment"] = PARAMS["augment"] | {"views": 2}
        if way.stage == "analyse":
            changes["analysis"] = {"hints": {"images": 2}}
        (place / "params.yaml").write_text(yaml.safe_dump(PARAMS | changes, sort_keys=False))
        yield place
        shutil.rmtree(place)

    def check(self, place: Path, way: Way, ended: Ended) -> None:
        """The stage has ended well, with what an undisturbed one gives, and has left nothing else."""
        demand(ended.code == 0, f"{way} does not go on: {ended.printed[-1500:]}")
        expected, _ = self.undisturbed[way]
        demand(digest(place, SAME[way.stage]) == expected, f"{way} gave something else")
        lacking = [name for name in MADE.get(way.stage, []) if not (place / name).exists()]
        demand(not lacking, f"{way} did not make {lacking}")
        check_nothing_half_written(place, way)
        left = [path for path in (place / ".work").glob(f"{way.stage}-*")]
        demand(not left, f"{way} left {left}")
        if way.stage == "track":
            demand(rows(place) == rows(self.place), f"the rows are {rows(place)}")


def check_nothing_half_written(place: Path, way: Way) -> None:
    left = [str(path.relative_to(place)) for path in place.rglob("*.partial")]
    demand(not left, f"{way} left {left}")


def digest(place: Path, names: list[str]) -> str:
    """A hash of files and folders without what differs each time: seconds and names of records."""
    total = hashlib.sha256()
    for name in names:
        path = place / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(str(file.relative_to(place)).encode() + file.read_bytes())
    return total.hexdigest()


def rows(place: Path) -> list[str]:
    """The names of all rows, with those of the trainings below them."""
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as database:
        wanted = "select name from runs where lifecycle_stage = 'active' and status = 'FINISHED'"
        return sorted(name for (name,) in database.execute(wanted))
