"""Generated cases against the standing promises (docs/reliability.md), for as long as is wanted.

`make soak MINUTES=60` prints a seed and, at the end, how many cases were tried, held and broke. A case that
breaks is printed with its number: `python tests/soak.py --seed SEED --only KIND:NUMBER` tries it again.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402
import small_disk  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402
from stage_runs import (  # noqa: E402
    LEAST,
    OFTEN,
    OPTIONS,
    TRAIN,
    BrokenError,
    Graph,
    Shortage,
    Stop,
    Way,
    check_nothing_half_written,
    demand,
    run,
)
from stub_project import StubProject  # noqa: E402
from world import pictures  # noqa: E402

from pipeline import checkpoint  # noqa: E402
from pipeline.data import decode  # noqa: E402
from pipeline.deploy import info  # noqa: E402
from pipeline.deploy.predictor import Predictor  # noqa: E402
from pipeline.deploy.read_bundle import BundleError, open_bundle, sealed  # noqa: E402
from pipeline.deploy.verify import passed, verify  # noqa: E402
from pipeline.params import load_params  # noqa: E402
from pipeline.project.check import check_data_root  # noqa: E402
from pipeline.settings import InputError  # noqa: E402

# --- kinds of cases; each tries one, and raises BrokenError


def kill(graph: Graph, chance: random.Random) -> None:
    """A stage that is stopped at any moment, up to three times, goes on to the same result."""
    stage = chance.choice(list(OPTIONS))
    stopped(graph, Way(stage, has_fixed_views=stage in TRAIN and chance.random() < 0.5), chance)


def pair(graph: Graph, chance: random.Random) -> None:
    """So does a training of two processes, whichever of them is stopped."""
    stopped(graph, Way(chance.choice(TRAIN), 2, chance.random() < 0.5), chance)


def stopped(graph: Graph, way: Way, chance: random.Random) -> None:
    """Stop it up to three times, at any moment, then let it end."""
    seconds, limit = graph.seconds(way), graph.limit(way)
    with graph.copy(way) as place:
        for _ in range(chance.randint(1, 3)):
            number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            stop = Stop(chance.uniform(0, 1.1 * seconds), number, chance.choice(["one", "all", "child"]))
            ended = run(place, way, limit=limit, stop=stop, save_every=chance.choice([0.01, 20.0]))
            # a child may end a stage in a sentence, and a launcher has codes of its own
            more = (-signal.SIGKILL, *range(256)) if way.processes > 1 else (2,) if stop.to == "child" else ()
            demand(
                ended.code in (0, -number, 128 + number, *more),
                f"{way} ended with {ended.code} after {stop}: {ended.printed[-1500:]}",
            )
            demand("Traceback" not in ended.printed, f"{way} after {stop}: {ended.printed[-3000:]}")
        graph.check(place, way, run(place, way, limit=limit))


def full(graph: Graph, chance: random.Random) -> None:
    """A stage whose files do not fit says so in a sentence, and runs as always when there is room again."""
    stage = chance.choice(list(OPTIONS))
    trains = stage in TRAIN
    way = Way(stage, 2 if trains and chance.random() < 0.3 else 1, trains and chance.random() < 0.5)
    most = int(10 ** chance.uniform(1, 6))
    is_disk = chance.random() < 0.5 and small_disk.possible()
    shortage = Shortage(room=max(4096, most)) if is_disk else Shortage(largest=most)
    limit = graph.limit(way)
    with graph.copy(way) as place:
        ended = run(place, way, limit=limit, shortage=shortage)
        said = f"{way} with {shortage} ended with {ended.code}: {ended.printed[-3000:]}"
        demand(ended.code in (0, 2) or way.processes > 1, said)
        demand(ended.code == 0 or "Error: " in ended.printed, said)
        demand("Traceback" not in ended.printed, said)
        check_nothing_half_written(place, way)
        graph.check(place, way, run(place, way, limit=limit))


class Repro:
    """This project's real graph, with stages that are over at once, before it has run."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.project = StubProject(place / "stub", "kd", "fitnet")
        self.untouched = place / "untouched"
        shutil.copytree(self.project.place, self.untouched, symlinks=True)
        begun = time.monotonic()
        self.project.handdown("run")
        self.seconds = time.monotonic() - begun
        self.expected = self.project.outputs()

    def begin_again(self) -> StubProject:
        shutil.rmtree(self.project.place)
        shutil.copytree(self.untouched, self.project.place, symlinks=True)
        return self.project


def repro(make: Callable[[], Repro], chance: random.Random) -> None:
    """`handdown run` that is killed at any moment, with DVC or without, goes on when it is started again."""
    whole = make()
    project = whole.begin_again()
    words = ["run", *chance.choice([[], [], ["--jobs", "2"]])]
    for _ in range(chance.randint(1, 3)):
        running = project.start(*words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(chance.uniform(0, whole.seconds))
        kill_some(running.pid, chance)
        printed, _ = running.communicate()
        wait_for_all_in(project.place)
        demand("Traceback" not in printed, printed[-3000:])
    running = project.start("run")
    printed, _ = running.communicate(timeout=max(LEAST, OFTEN * whole.seconds))
    demand(running.returncode == 0, f"it does not go on, code {running.returncode}: {printed[-3000:]}")
    demand(project.outputs() == whole.expected, f"other outputs: {printed[-3000:]}")
    demand(project.is_up_to_date(), f"not up to date: {printed[-3000:]}")


def wait_for_all_in(place: Path) -> None:
    """Parts that ran side by side go on for a while if only what started them was killed."""
    end = time.monotonic() + LEAST
    while any(each.info["cwd"] == str(place) for each in psutil.process_iter(["cwd"])):
        demand(time.monotonic() < end, "DVC still runs")
        time.sleep(0.1)


def kill_some(process: int, chance: random.Random) -> None:
    """All of them as from a terminal, or one alone."""
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if chance.random() < 0.5:
            os.killpg(process, number)
        else:
            each = [process, *(child.pid for child in psutil.Process(process).children(recursive=True))]
            os.kill(chance.choice(each), signal.SIGKILL)


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


def kinds(graph: Graph, server: Server, place: Path) -> list[Kind]:
    whole = cache(partial(Repro, place / "repro"))
    return [
        Kind("kill", "a stage stopped at any moment ends with the same result", partial(kill, graph)),
        Kind("pair", "so does a training of two processes", partial(pair, graph)),
        Kind("repro", "`handdown run` killed at any moment goes on", partial(repro, whole)),
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
    chosen = kinds(graph, server, place)
    try:
        if only:
            for name, number in (case.split(":") for case in only.split(",")):
                next(kind for kind in chosen if kind.name == name).try_one(seed, int(number))
            chosen = [kind for kind in chosen if kind.tried]
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
    parser.add_argument("--only", default="", metavar="KIND:NUMBER,...", help="some cases of this seed again")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its server ends, too
    seed = args.seed or f"{random.SystemRandom().randrange(10**9)}"
    sys.exit(soak(seed, minutes=args.minutes, rounds=args.rounds, only=args.only) > 0)
