"""Generated cases against the standing promises (docs/reliability.md), for as long as is wanted.

`make soak MINUTES=60` prints a seed and, at the end, how many cases were tried, held and broke. A case that
breaks is printed with its number: `python tests/soak.py --seed SEED --only KIND:NUMBER` tries it again.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import http.client
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import yaml  # noqa: E402
from fabricated import fabricate  # noqa: E402
from PIL import Image  # noqa: E402
from world import pictures, save_pictures  # noqa: E402

from pipeline import checkpoint  # noqa: E402
from pipeline.data import decode  # noqa: E402
from pipeline.deploy import info  # noqa: E402
from pipeline.deploy.predictor import Predictor  # noqa: E402
from pipeline.deploy.read_bundle import BundleError, open_bundle, sealed  # noqa: E402
from pipeline.deploy.verify import passed, verify  # noqa: E402
from pipeline.params import load_params  # noqa: E402
from pipeline.project.check import check_data_root  # noqa: E402
from pipeline.settings import InputError  # noqa: E402

SLOW = ("torch._dynamo", "onnxscript", "mlflow.store.tracking.sqlalchemy_store")  # to import
SLOWEST = 900.0  # seconds; a stage that takes longer hangs
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
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {
        "hints": RUN | {"method": {"name": "fitnet", "kd_weight": 1.0}, "phases": {"hint": {"epochs": 4}}},
    },
    "analysis": {},
    "export": {"parity_images": 20},
    "benchmark": {},
}
PREPARED, OF_RUN = "--data data/prepared", "--name hints"
TRAINING = f"{PREPARED} --code code --work .work"
STAGES = {  # the options that dvc.yaml gives
    "prepare": f"{PREPARED} --work .work --record records/prepare.json",
    "views": f"{PREPARED} --out data/views.png",
    "teacher": f"{TRAINING} --name big --out models/teachers/big --record records/teacher/big.json",
    "pretrain": f"{TRAINING} {OF_RUN} --teacher models/teachers/big --out models/initial/hints "
    "--record records/pretrain/hints.json",
    "distill": f"{TRAINING} {OF_RUN} --teacher models/teachers/big --initial models/initial/hints "
    "--out models/students/hints --record records/distill/hints.json",
    "evaluate": f"{PREPARED} {OF_RUN} --teacher models/teachers/big --students models/students/hints "
    "--predictions records/evaluate/hints.npz --work .work "
    "--record records/evaluate/hints.json",
    "export": f"{PREPARED} {OF_RUN} --students models/students/hints --distilled records/distill/"
    "hints.json --evaluated records/evaluate/hints.json --out models/export/hints "
    "--record records/export/hints.json",
    "report": f"--records records --bundles models/export {PREPARED} --views data/views.png "
    "--reports reports --plots plots --metrics metrics",
    "track": "--records records --bundles models/export --reports reports --plots plots "
    "--out reports/mlflow.json",
}
SAME = {  # what must be the same, byte by byte, however often the stage was stopped
    "prepare": ["data/prepared"],
    "views": ["data/views.png"],
    "teacher": ["models/teachers/big"],
    "pretrain": ["models/initial/hints"],
    "distill": ["models/students/hints"],
    "evaluate": ["records/evaluate/hints.npz"],
    "export": ["models/export/hints/student.onnx", "models/export/hints/student.safetensors"],
    "report": ["metrics", "plots/confusion"],
    "track": [],
}
MADE = {  # what else DVC removes before the stage runs
    "teacher": ["records/teacher/big.json"],
    "export": ["models/export/hints", "records/export/hints.json"],
    "report": ["plots", "reports"],
    "track": ["mlflow.db", "mlartifacts", "reports/mlflow.json"],
}


class BrokenError(Exception):
    """A promise was broken; the text says how."""


def demand(holds: object, otherwise: str) -> None:
    if not holds:
        raise BrokenError(otherwise)


# --- stages, each in a process of its own


@dataclass(frozen=True)
class Ended:
    code: int  # as a shell tells it: negative if a signal ended it
    printed: str
    seconds: float


def run(
    place: Path,
    stage: str,
    *,
    after: float = SLOWEST,
    signal_: int = signal.SIGKILL,
    largest: int = 0,
    save_every: float = 20.0,
) -> Ended:
    """Run a stage in a copy of this process. `after` so many seconds it gets a signal; no file that it writes
    may be larger than `largest` bytes."""
    read, write = os.pipe()
    begun = time.monotonic()
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the copy, until the stage begins
    if not (child := os.fork()):
        os.close(read)
        _become(place, stage, STAGES[stage], write, largest, save_every)
    signal.signal(signal.SIGINT, usual)
    os.close(write)
    timer = threading.Timer(after, partial(_send, child, signal_))
    hung = threading.Timer(SLOWEST, partial(_send, child, signal.SIGKILL))
    for each in (timer, hung):
        each.start()
    with os.fdopen(read, errors="replace") as stream:
        printed = stream.read()
    _, status = os.waitpid(child, 0)
    for each in (timer, hung):
        each.cancel()
        each.join()
    seconds = time.monotonic() - begun
    demand(seconds < SLOWEST, f"{stage} hangs: {printed[-500:]}")
    return Ended(os.waitstatus_to_exitcode(status), printed, seconds)


def _send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _become(place: Path, stage: str, options: str, write: int, largest: int, save_every: float) -> None:
    """Be the process of a stage, and end."""
    code = 1
    try:
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        faulthandler.dump_traceback_later(SLOWEST - 30)
        os.chdir(place)
        os.environ["DVC_ROOT"] = str(place)  # where the rows of stage track go
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        from pipeline.project.command import command
        from pipeline.training import state

        state.SAVE_EVERY, state.SAVE_SHARE = save_every, 1.0
        module = __import__(f"stages.{stage}", fromlist=["stage"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command(module.stage, arguments=options.split())
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


class Graph:
    """A small project whose stages all ended well, once; cases work on copies of it."""

    def __init__(self, place: Path) -> None:
        self.place = place / "whole"
        self.seconds: dict[str, float] = {}
        self.place.mkdir()
        save_pictures(self.place / "pictures", 90, size=10)
        (self.place / "code").write_text("c")
        (self.place / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
        (self.place / "dvc.lock").touch()
        self._fabricate_benchmark()
        # once, since each stage is a copy of this process
        for name in (*SLOW, *(f"stages.{stage}" for stage in STAGES)):
            importlib.import_module(name)
        for stage in STAGES:
            ended = run(self.place, stage)
            demand(ended.code == 0, f"{stage} does not run at all: {ended.printed[-2000:]}")
            self.seconds[stage] = ended.seconds
        self.expected = {stage: digest(self.place, SAME[stage]) for stage in SAME}
        self.bundle = self.place / "models/export/hints"
        self.count = 0

    def _fabricate_benchmark(self) -> None:
        """The record of a stage that no case is about, and that takes longer than all others together."""
        with tempfile.TemporaryDirectory() as name:
            record = json.loads((fabricate(Path(name)) / "benchmark/kd.json").read_text())
        file = self.place / "records/benchmark/hints.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(record | {"name": "hints"}))

    @contextlib.contextmanager
    def copy(self, stage: str) -> Iterator[Path]:
        """A copy in which `stage` has not run yet."""
        self.count += 1
        place = self.place.with_name(f"copy-{self.count}")
        shutil.copytree(self.place, place, symlinks=True)
        for name in (*SAME[stage], *MADE.get(stage, [])):
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        yield place
        shutil.rmtree(place)

    def check(self, place: Path, stage: str, ended: Ended) -> None:
        """The stage has ended well, with what an undisturbed one gives, and has left nothing else."""
        demand(ended.code == 0, f"{stage} does not go on: {ended.printed[-1500:]}")
        demand(digest(place, SAME[stage]) == self.expected[stage], f"{stage} gave something else")
        left = [str(path.relative_to(place)) for path in place.rglob("*.partial")]
        demand(not left, f"{stage} left {left}")
        if stage == "track":
            demand(sorted(rows(place)) == ["big", "hints"], f"the rows are {rows(place)}")


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
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as database:
        wanted = "select name from runs where lifecycle_stage = 'active' and status = 'FINISHED'"
        return [name for (name,) in database.execute(wanted)]


# --- kinds of cases; each tries one, and raises BrokenError


def kill(graph: Graph, chance: random.Random) -> None:
    """A stage that is stopped at any moment, up to three times, goes on to the same result."""
    stage = chance.choice(list(SAME))
    with graph.copy(stage) as place:
        for _ in range(chance.randint(1, 3)):
            number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            ended = run(
                place,
                stage,
                after=chance.uniform(0, 1.1 * graph.seconds[stage]),
                signal_=number,
                save_every=chance.choice([0.01, 20.0]),
            )
            demand(
                ended.code in (0, -number, 128 + number),
                f"{stage} ended with {ended.code} after {number!r}: {ended.printed[-1500:]}",
            )
            demand("Traceback" not in ended.printed, f"{stage}: {ended.printed[-1500:]}")
        graph.check(place, stage, run(place, stage))


def full(graph: Graph, chance: random.Random) -> None:
    """A stage whose files do not fit says so in a sentence, and runs as always when there is room again."""
    stage = chance.choice(list(SAME))
    with graph.copy(stage) as place:
        ended = run(place, stage, largest=int(10 ** chance.uniform(1, 6)))
        demand(ended.code in (0, 2), f"{stage} ended with {ended.code}: {ended.printed[-1500:]}")
        demand("Traceback" not in ended.printed, f"{stage}: {ended.printed[-1500:]}")
        graph.check(place, stage, run(place, stage))


def bundle(graph: Graph, chance: random.Random) -> None:
    """A bundle of which a file was changed does not pass as the one with the fingerprint."""
    fingerprint = open_bundle(graph.bundle).fingerprint
    place = graph.place.with_name("bundle")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(graph.bundle, place)
    file = chance.choice([path for path in sorted(place.iterdir()) if path.is_file()])
    before = file.read_bytes()
    damage(file, chance)
    if file.is_file() and file.read_bytes() == before:
        return
    demand(not passed(verify(place, expect=fingerprint)), f"a bundle with another {file.name} was accepted")
    if file.name in ("bundle.json", "student.onnx", "golden.npz"):
        with contextlib.suppress(BundleError):
            Predictor(place, expect=fingerprint)
            raise BrokenError(f"a predictor took a bundle with another {file.name}")


def description(graph: Graph, chance: random.Random) -> None:
    """A description with any content, and a seal that fits, is used or refused in a sentence."""
    place = graph.place.with_name("described")
    if not place.exists():
        shutil.copytree(graph.bundle, place)
    facts = json.loads((graph.bundle / "bundle.json").read_text())
    for _ in range(chance.randint(1, 3)):
        facts = mutated(facts, chance)
    try:
        (place / "bundle.json").write_text(sealed(facts))
    except (TypeError, ValueError, AttributeError):  # no description at all
        return
    with contextlib.suppress(BundleError):
        info.text(open_bundle(place))
        Predictor(place)


def state(chance: random.Random) -> None:
    """A changed file of state is never continued from; changed weights are used or refused in a sentence."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        file = Path(name) / "distill.state"
        checkpoint.save_state(file, {"epoch": 3, "parts": {"net": torch.rand(20)}, "curves": {"a": [1.0]}})
        before = file.read_bytes()
        damage(file, chance)
        changed = not file.is_file() or file.read_bytes() != before
        demand(not changed or checkpoint.load_state(file) is None, "a changed state was used")
        file = Path(name) / "w.safetensors"
        checkpoint.save_weights(file, {"a": torch.rand(9)})
        damage(file, chance)
        with contextlib.suppress(InputError):
            checkpoint.load_weights(file)


def params(chance: random.Random) -> None:
    """Any params.yaml is taken or refused in a sentence."""
    text = (ROOT / "params.yaml").read_text()
    if chance.random() < 0.3:
        content = bytearray(text.encode())
        for _ in range(chance.randint(1, 5)):
            content[chance.randrange(len(content))] = chance.choice(b"\x00\xff:{}[]&*!|>'\"%@`#-? \n\tz9")
        text = content.decode(errors="surrogateescape")
    else:
        settings = yaml.safe_load(text)
        for _ in range(chance.randint(1, 3)):
            settings = mutated(settings, chance)
        text = yaml.safe_dump(settings, allow_unicode=chance.random() < 0.5)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        file = Path(name) / "params.yaml"
        file.write_text(text, errors="surrogateescape")
        with contextlib.suppress(InputError):
            loaded = load_params(file)
            check_data_root(loaded)
            for run_ in loaded.runs:
                loaded.run(run_)
            for teacher in loaded.teachers:
                loaded.teacher_run(teacher)


def picture(chance: random.Random) -> None:
    """Any bytes are a picture or are refused in a sentence."""
    stream = io.BytesIO()
    image = Image.fromarray(pictures(1, size=chance.randint(1, 40), seed=chance.randrange(999))[0][0])
    image.convert(chance.choice(["RGB", "L", "P"])).save(
        stream, chance.choice(["PNG", "GIF", "BMP", "TIFF", "WEBP"])
    )
    content = damaged(stream.getvalue(), chance)
    with warnings.catch_warnings(), contextlib.suppress(decode.Undecodable):
        warnings.simplefilter("ignore")
        decode.fit(decode.load(content), 8, 3)


class Server:
    """`serve` with the graph's bundle, and what it answers to one good picture."""

    def __init__(self, bundle: Path) -> None:
        options = ["--port", "0", "--max-seconds", "1", "--max-bytes", "100000"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.deploy", "serve", str(bundle), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split("127.0.0.1:")[1].split()[0])
        stream = io.BytesIO()
        Image.fromarray(pictures(1)[0][0]).save(stream, "PNG")
        self.good = stream.getvalue()
        self.answer = self.ask()

    def ask(self) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", self.good)
            reply = connection.getresponse()
            return reply.status, reply.read()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


def request(server: Server, chance: random.Random) -> None:
    """Any request is answered, and changes no answer to the next."""
    path = chance.choice(["/predict", "/predict?top=2", "/", "/health", "/metrics", "/../x", "/%00"])
    method = chance.choice(["POST", "POST", "GET", "PUT", "HEAD", "XYZ", "POST"])
    body = damaged(server.good, chance) if chance.random() < 0.7 else chance.randbytes(chance.randrange(3000))
    kind = chance.choice(["image/png", "multipart/form-data; boundary=b", "application/json", "", "\x01"])
    if "multipart" in kind:
        head = 'Content-Disposition: form-data; name="images"; filename="a"'
        body = b"--b\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n--b--\r\n"
    length = chance.choice([len(body), len(body), len(body), len(body) + 9, 0, -1, 10**12, "x"])
    text = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
    text += f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    content = text.encode() + body
    if chance.random() < 0.4:
        content = damaged(content, chance)
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        while part := connection.recv(65536):
            reply += part
        demand(b" 500 " not in reply[:20], f"status 500 for {content[:200]!r}")
    demand(server.process.poll() is None, f"the server ended after {content[:200]!r}")
    demand(server.ask() == server.answer, f"another answer after {content[:200]!r}")
    server.log.seek(0)
    demand("Traceback" not in server.log.read(), f"a traceback after {content[:200]!r}")


# --- mutations


STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1e9, -1e-9, 2**70, float("inf"), float("nan"), "", " ", "x", "0", "yes",
    "on", "1:30", "2020-01-01", "../..", "/", "a" * 300, "ü\u2028", "\x00", [], {}, [[]], {"": {}}, [1, "a"],
]  # fmt: skip


def mutated(tree: Any, chance: random.Random) -> Any:
    """A copy with one change at any depth."""
    if isinstance(tree, dict) and tree and chance.random() < 0.9:
        key = chance.choice(list(tree))
        match chance.randrange(8):
            case 0:
                return {name: value for name, value in tree.items() if name != key}
            case 1:
                return tree | {chance.choice([f"{key}s", "", "x", "net", "name", "None"]): tree[key]}
            case 2:
                return tree | {key: tree[chance.choice(list(tree))]}
            case _:
                return tree | {key: mutated(tree[key], chance)}
    if isinstance(tree, list) and tree and chance.random() < 0.7:
        n = chance.randrange(len(tree))
        return [*tree[:n], mutated(tree[n], chance), *tree[n + chance.randrange(2) :]]
    if isinstance(tree, int | float) and not isinstance(tree, bool) and chance.random() < 0.5:
        return tree * chance.choice([-1, 0, 0.5, 2, 1000, 1e12])
    if isinstance(tree, str) and tree and chance.random() < 0.5:
        n = chance.randrange(len(tree))
        return tree[:n] + chance.choice(["", "x", ":", "/", " ", "\n", "é"]) + tree[n + 1 :]
    return chance.choice(STRANGE)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes with one change."""
    n, m = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    match chance.randrange(6):
        case 0:
            return content[:n]
        case 1:
            return content[:n] + content[m:]
        case 2:
            return content + chance.randbytes(chance.randint(1, 50))
        case 3:
            return content[:n] + chance.randbytes(m - n) + content[m:]
        case 4:
            return content[:n] + content[n:m] * 2 + content[m:]
        case _:
            changed = bytearray(content)
            for _ in range(chance.choice([1, 1, 8])):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            return bytes(changed)


def damage(file: Path, chance: random.Random) -> None:
    """Change a file, remove it, or put a folder, a dangling link or a pipe in its place."""
    match chance.randrange(10):
        case 0:
            file.unlink()
        case 1:
            file.unlink()
            file.mkdir()
        case 2:
            file.unlink()
            file.symlink_to("nowhere")
        case 3:
            file.write_bytes(b"")
        case _:
            file.write_bytes(damaged(file.read_bytes(), chance))


# --- the counts


@dataclass
class Kind:
    name: str
    what: str
    attempt: Callable[[random.Random], None]
    tried: int = 0
    broke: int = 0
    seconds: float = 0.0
    many: int = field(default=1)  # cases at a time

    def try_one(self, seed: str, number: int) -> None:
        begun = time.monotonic()
        self.tried += 1
        try:
            self.attempt(random.Random(f"{seed}/{self.name}/{number}"))
        except Exception as error:
            self.broke += 1
            said = str(error) if isinstance(error, BrokenError) else traceback.format_exc(limit=-6)
            print(f"BROKE --seed {seed} --only {self.name}:{number}\n{said}\n", flush=True)
        self.seconds += time.monotonic() - begun


def kinds(graph: Graph, server: Server) -> list[Kind]:
    return [
        Kind("kill", "a stage stopped at any moment ends with the same result", partial(kill, graph)),
        Kind("full", "a stage says that the disk is full, and runs once there is room", partial(full, graph)),
        Kind("bundle", "a changed bundle is refused", partial(bundle, graph), many=5),
        Kind("description", "a changed description is no traceback", partial(description, graph), many=20),
        Kind("state", "a changed state is not used", state, many=50),
        Kind("params", "changed parameters are no traceback", params, many=20),
        Kind("picture", "a changed picture is no traceback", picture, many=200),
        Kind("request", "a hostile request changes no answer", partial(request, server), many=10),
    ]


def soak(seed: str, *, minutes: float, rounds: int, only: str) -> int:
    """Try cases until the time is over, each kind for an equal part of it; the number of those that broke."""
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    graph = Graph(place)
    server = Server(graph.bundle)
    chosen = kinds(graph, server)
    try:
        if only:
            name, number = only.split(":")
            kind = next(kind for kind in chosen if kind.name == name)
            kind.try_one(seed, int(number))
            chosen = [kind]
        else:
            while (time.monotonic() - begun < 60 * minutes) if minutes else rounds > 0:
                for kind in [min(chosen, key=lambda kind: kind.seconds)] if minutes else chosen:
                    for _ in range(kind.many):
                        kind.try_one(seed, kind.tried)
                rounds -= 1
    finally:
        server.close()
        shutil.rmtree(place)
    print(table(chosen, time.monotonic() - begun))
    return sum(kind.broke for kind in chosen)


def table(chosen: list[Kind], seconds: float) -> str:
    lines = ["| cases | tried | held | broke |", "|---|--:|--:|--:|"]
    for kind in chosen:
        lines.append(
            f"| {kind.what} (`{kind.name}`) | {kind.tried} | {kind.tried - kind.broke} | {kind.broke} |"
        )
    return "\n".join([*lines, f"\n{seconds / 60:.1f} minutes"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument(
        "--rounds", type=int, default=1, help="without --minutes: how often each kind is tried"
    )
    parser.add_argument("--seed", default="", help="default: a new one")
    parser.add_argument("--only", default="", metavar="KIND:NUMBER", help="one case of this seed again")
    args = parser.parse_args()
    seed = args.seed or f"{random.SystemRandom().randrange(10**9)}"
    sys.exit(soak(seed, minutes=args.minutes, rounds=args.rounds, only=args.only) > 0)
