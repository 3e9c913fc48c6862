"""Rows and the registry in a real PostgreSQL, where it is installed."""

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import POSTGRES, in_postgres, postgres
from track.test_registry import NAME, promote, write_bundle
from tracked import ANY_HINT, OLD_LOADER, client, content, log, logged_rows, make_project, start_logging

from pipeline.settings import InputError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(OLD_LOADER),
    pytest.mark.filterwarnings(ANY_HINT),
    pytest.mark.skipif(not POSTGRES, reason="there is no PostgreSQL (Debian: apt-get install postgresql)"),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None,
        reason="there is no driver (pip install 'psycopg[binary]')",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    with postgres() as port:
        yield port


@pytest.fixture
def project(cluster: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_project(tmp_path / "my project", monkeypatch, fresh=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", in_postgres(cluster))
    return root


def test_two_processes_fill_a_fresh_database_once(project: Path) -> None:
    racing = [start_logging(project, out=f"{n}.json") for n in range(2)]
    for process in racing:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    written = (project / "0.json").read_text()
    assert written == (project / "1.json").read_text()
    assert "postgresql://127.0.0.1" in written
    assert "ann" not in written
    logged = log(project)
    assert logged.new == []
    assert sorted((run.info.run_name, run.info.status) for run in logged_rows(logged)) == [
        (name, "FINISHED") for name in ("alone", "big", "fitnet", "kd")
    ]
    assert (project / "mlartifacts").is_dir()
    assert not list((project / "elsewhere").iterdir())


def test_its_rows_are_those_of_sqlite(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = content(log(project))
    make_project(tmp_path / "clone", monkeypatch)
    assert content(log(tmp_path / "clone")) == rows


def test_the_registry_works_in_it(project: Path) -> None:
    for name in ("alone", "kd", "fitnet"):
        write_bundle(project, name)
    log(project)
    assert [promote(project).new for _ in range(2)] == [True, False]
    assert client().get_model_version_by_alias(NAME, "champion").tags["run"] == "fitnet"


def test_a_wrong_password_is_reported_soon_and_not_printed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = os.environ["MLFLOW_TRACKING_URI"].replace("ann:", "ann:a%20guess%20of%20mine%20")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"password authentication failed.*No model is lost") as caught:
        log(project)
    assert time.monotonic() - start < 20
    assert "guess" not in str(caught.value)
