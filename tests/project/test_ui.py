"""`make ui` without MLflow: what it says, and when."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import track
from pipeline.project import ui as module
from pipeline.project.ui import ui
from pipeline.settings import InputError

SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        open(sys.argv[2], "w").write("asked")
        self.send_response(200)
        self.end_headers()
    def log_message(self, *ignored):
        pass
time.sleep(0.5)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).handle_request()
"""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(track, "view_link", lambda port: f"link {port}")
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_link_is_printed_when_the_server_answers(
    port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    monkeypatch.setattr(
        module, "_command", lambda port: [sys.executable, "-c", SERVER, str(port), str(asked)]
    )
    real, seen = module._answers, list[tuple[str, bool]]()

    def answers(server: "subprocess.Popen[bytes]", port: int) -> bool:
        seen.append((capfd.readouterr().out, asked.exists()))
        return real(server, port)

    monkeypatch.setattr(module, "_answers", answers)
    with pytest.raises(SystemExit) as ended:
        ui(port)
    assert ended.value.code == 0
    assert seen == [("MLflow starts, which takes about ten seconds.\n", False)]
    assert asked.exists()
    assert capfd.readouterr().out == f"Open link {port} (Ctrl-C stops it)\n"


def test_a_server_that_ends_at_once_has_no_link(
    port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_command", lambda port: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit) as ended:
        ui(port)
    assert ended.value.code == 3
    assert "link" not in capfd.readouterr().out


def test_a_port_that_is_taken_is_refused_with_another_one(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(InputError, match=rf"Port {port} cannot be used.*make ui PORT={port + 1}"):
            ui(port)


def test_the_server_keeps_files_beside_the_database_and_hides_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = module._command(5001)
    assert command[-2:] == ["--artifacts-destination", "./mlartifacts"]
    assert "--port 5001" in " ".join(command)
    uri = "postgresql://ann:secret@host/db"
    assert "secret" not in " ".join(command)
    assert module._environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri
    assert module._environment("")["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"
