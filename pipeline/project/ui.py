"""MLflow on this machine, open on this project's runs."""

import os
import signal
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

from pipeline.project.dvc import BIN
from pipeline.settings import InputError


def ui(port: int = 5000) -> None:
    """Serve MLflow on this machine until Ctrl-C; print the link to this project's runs when it answers."""
    from pipeline.track import view_link

    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith("http"):
        print(f"Open {view_link(port)}")
        return
    _assert_free(port)
    link = view_link(port)
    print("MLflow starts, which takes about ten seconds.", flush=True)
    with subprocess.Popen(_command(port), env=_environment(address)) as server:  # noqa: S603
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        try:
            if _answers(server, port):
                print(f"Open {link} (Ctrl-C stops it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            server.send_signal(signal.SIGINT)
            server.wait()
            return
    sys.exit(max(0, server.returncode))  # a signal that ended it came from us


def _assert_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"Port {port} cannot be used ({error.strerror}). Perhaps `make ui` runs already. If not, "
                f"choose another port: make ui PORT={port + 1}"
            ) from None


def _answers(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until the server answers; False if it ended before."""
    while server.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return True
    return False


def _command(port: int) -> list[str]:
    server = [str(BIN / "mlflow"), "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    hosts = f"localhost:{port},127.0.0.1:{port}"
    return [*server, "--allowed-hosts", hosts, "--artifacts-destination", "./mlartifacts"]


def _environment(address: str) -> dict[str, str]:
    return os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # not an option: everybody on this machine could read its password in the list of processes
        "MLFLOW_BACKEND_STORE_URI": address or "sqlite:///mlflow.db",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
