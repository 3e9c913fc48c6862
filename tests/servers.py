"""The servers of a team, on this machine: PostgreSQL, MLflow before a database, and an imitation of S3."""

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

from scratch_project import heeding_ctrl_c

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
PASSWORD = "nobody knows it"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgres() -> Iterator[int]:
    """The port of a server with one user, ann, who needs the password. Nothing is left of it afterwards."""
    place = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (place / "password").write_text(PASSWORD)
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            for path in (place, place / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            become = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        else:
            become = []
        port = free_port()

        def run(program: str, *arguments: str | Path) -> None:
            command = [*become, POSTGRES[-1].with_name(program), *arguments]
            done = subprocess.run(
                command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
            )
            assert done.returncode == 0, done.stdout

        data = place / "data"
        user = ("-U", "ann", "--auth=scram-sha-256", f"--pwfile={place / 'password'}")
        run("initdb", "-D", data, *user, "-E", "UTF8", "--no-sync")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", settings, "start")
        try:
            yield port
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place)


def in_postgres(port: int) -> str:
    """The address of the database that `postgres` serves at this port."""
    return f"postgresql://ann:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"


@contextmanager
def mlflow(
    place: Path, database: str, artifacts: str, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server, started as the documentation says but with one process.

    The password of the database is in no command line.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--artifacts-destination", artifacts]
    command += ["--allowed-hosts", f"127.0.0.1:{port}", *options]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    others = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    place.mkdir(parents=True, exist_ok=True)
    with (place / "log").open("w") as log:
        running = subprocess.Popen(
            command,
            cwd=place,
            env=others | settings | dict(env or {}),
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=heeding_ctrl_c,
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
        running = subprocess.Popen(
            command, cwd=place, stdout=log, stderr=log, process_group=0, preexec_fn=heeding_ctrl_c
        )
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
    """Interrupt a process and all its children, unless it has ended by itself."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGINT)
    running.wait(timeout=60)
