"""No password is printed, whatever is in it."""

import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from pipeline.project import ui
from pipeline.settings import InputError
from pipeline.track import address, database

HIDDEN = "postgresql://(hidden)"


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("http://ann:s3cret@host:5000/x?token=s3cret", "http://host:5000/x"),
        ("https://s3cret@host", "https://host"),
        ("http://ann:s3/cret@host:5000", "http://host:5000"),
        ("http://ann:s3cret@[::1]:5000/", "http://[::1]:5000/"),
        ("postgresql://ann:s3cret@host/db?password=s3cret", "postgresql://host/db"),
        ("postgresql+psycopg2://ann:s3cret@host:5432/db", "postgresql+psycopg2://host:5432/db"),
        ("postgresql://ann:s3/cret@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3 cret@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3:cret@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3@cret@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3@cr/e:t@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3%40cret@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3\ncret@host/db", "postgresql://host/db"),
        ("postgresql://ann:s3[cret@host/db", "postgresql://host/db"),
        ("postgresql://ann:5?cret@host/db", HIDDEN),
        ("postgresql://ann:5#cret@host/db", HIDDEN),
        ("postgresql://host/db?user=ann&password=s3cret", "postgresql://host/db"),
        ("postgresql://ann:pw@host/db?password=s3@cret", HIDDEN),
        ("postgresql://host/db?password=s3@cret", HIDDEN),
        ("postgresql://ann:s3cret", HIDDEN),
        ("postgresql:///ann:s3cret@host/db", "postgresql://host/db"),
        ("postgresql:ann:s3cret@host/db", "(an address without ://)"),
        ("MYSQL+pymysql://ann:s3/cret@host", "MYSQL+pymysql://host"),
        ("sqlite+pysqlcipher://:s3cret@/db", "sqlite+pysqlcipher:///db"),
        ("sqlite:////srv/my project/a@b.db", "sqlite:////srv/my project/a@b.db"),
        ("sqlite:///team.db?key=s3cret", "sqlite:///team.db"),
        ("./mlruns", "./mlruns"),
    ],
)
def test_credentials_are_never_printed(uri: str, public: str) -> None:
    assert database.public_uri(uri) == public
    assert not any(part in public for part in ("s3", "cret", "ann:"))


@pytest.mark.parametrize(
    "password", ["s3/cret", "s3 cret", "s3@cret", "s3@x:cret", "s3:cret", "s3[cret", "s3?cret", "s3#cret"]
)
@pytest.mark.parametrize("kind", ["postgresql", "http", "unknown"])
def test_an_error_does_not_print_them_either(
    kind: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{kind}://ann:{password}@127.0.0.1:1/db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="cannot be used") as caught, database.open_for_writing():
        pass
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert ("%40" in str(caught.value)) == (password != "s3:cret")


def test_an_error_that_quotes_no_password_is_printed() -> None:
    uri = "postgresql://ann:s3cret@host/db"
    assert address.clean(f"no answer from {uri} (user ann)", uri) == (
        "no answer from postgresql://host/db (user ann)"
    )
    assert address.clean("invalid dsn: password=s3cret", uri) == address.HIDDEN
    assert address.clean("via http://me:other@proxy:80", uri) == "via http://proxy:80"


def test_the_list_of_processes_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://ann:s3cret@host/db"
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], *, env: dict[str, str]) -> MagicMock:
        started.append((command, env))
        server = MagicMock(returncode=0)
        server.__enter__.return_value = server
        return server

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setitem(sys.modules, "pipeline.track", SimpleNamespace(view_link=lambda port: "link"))
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    monkeypatch.setattr(ui, "_assert_free", lambda port: None)
    monkeypatch.setattr(ui, "_answers", lambda server, port: True)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit) as ended:
        ui.ui()
    assert ended.value.code == 0
    ((command, environment),) = started
    assert command[1] == "server"
    assert "s3cret" not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
