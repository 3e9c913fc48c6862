"""A team's machines on this one: PostgreSQL, and MLflow in front of a database."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from project import heeding_ctrl_c

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
PASSWORD = "not told to anybody"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgres() -> Iterator[int]:
    """The port of a server with one user, ann; it keeps nothing and trusts nobody without the password."""
    place = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (place / "password").write_text(PASSWORD)
        if os.getuid() == 0:  # as which it refuses to run
            nobody = pwd.getpwnam("nobody")
            for path in (place, place / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            become = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        else:
            become = []
        port = free_port()

        def do(program: str, *arguments: str | Path) -> None:
            command = [*become, POSTGRES[-1].with_name(program), *arguments]
            done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
            assert done.returncode == 0, done.stdout

        data = place / "data"
        do("initdb", "-D", data, "-U", "ann", "--auth=scram-sha-256", f"--pwfile={place / 'password'}", "-E", "UTF8", "--no-sync")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        do("pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", settings, "start")
        try:
            yield port
        finally:
            do("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place)


def in_postgres(port: int) -> str:
    return f"postgresql://ann:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"


@contextmanager
def mlflow(place: Path, database: str, artifacts: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a server as the README says to start it, with one process; the database's password is in no command line."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--artifacts-destination", artifacts, "--allowed-hosts", f"127.0.0.1:{port}", *options]
    own = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    place.mkdir(parents=True, exist_ok=True)
    with (place / "log").open("w") as log:
        running = subprocess.Popen(
            command, cwd=place, env=kept | own | dict(env or {}), stdout=log, stderr=log, process_group=0, preexec_fn=heeding_ctrl_c
        )
    try:
        _wait(running, f"http://127.0.0.1:{port}/health", place / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(running)


@contextmanager
def object_store(place: Path) -> Iterator[str]:
    """The address of an imitation of S3 that keeps its objects in memory."""
    port = free_port()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        running = subprocess.Popen(command, cwd=place, stdout=log, stderr=log, process_group=0, preexec_fn=heeding_ctrl_c)
    try:
        _wait(running, f"http://127.0.0.1:{port}/moto-api/", place / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(running)


def _wait(running: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urlopen(address, timeout=10).close()
            return
        except URLError:
            assert running.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)


def _stop(running: "subprocess.Popen[bytes]") -> None:
    """With all its children; it may have ended by itself."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGINT)
    running.wait(timeout=60)
