"""The commands that the Makefile calls."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.project import __main__ as project
from pipeline.project import balance, dvc, graph
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--help"], 0), (["fly"], 2)])
def test_what_can_be_called_is_listed(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        project.main(arguments)
    assert ended.value.code == code
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in project.COMMANDS)


def test_make_has_a_target_for_every_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"$(PROJECT) {name}" in makefile for name in project.COMMANDS)


def test_options_have_defaults_and_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        project.main(["promote", "--help"])
    assert ended.value.code == 0
    assert "Register the student that is best on validation" in capsys.readouterr().out


def test_a_mistake_is_a_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InputError("there is nothing here. Go there.")

    monkeypatch.setitem(project.COMMANDS, "run", refuse)
    with pytest.raises(SystemExit) as ended:
        project.main(["run"])
    assert ended.value.code == 2
    assert "Error: there is nothing here. Go there." in capsys.readouterr().err


def fail(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *, code: int) -> list[tuple[str, ...]]:
    """Let dvc fail in this module; its calls are noted."""
    calls: list[tuple[str, ...]] = []

    def failing(*arguments: str) -> int:
        calls.append(arguments)
        return code

    monkeypatch.setattr(module, "dvc", failing)
    return calls


@pytest.fixture
def nothing_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    monkeypatch.setattr(graph, "stages_ahead", list)


@pytest.mark.usefixtures("nothing_ahead")
def test_a_graph_that_fails_shows_no_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/table.txt").write_text("the table\n")
    calls = fail(monkeypatch, graph, code=255)
    with pytest.raises(SystemExit) as ended:
        graph.run()
    assert ended.value.code == 255
    assert calls == [("repro",)]


@pytest.mark.usefixtures("nothing_ahead")
def test_the_table_is_printed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/table.txt").write_text("the table\n")
    monkeypatch.setattr(graph, "dvc", lambda *arguments: 0)
    graph.run()
    assert capsys.readouterr().out == "the table\n"


def test_balance_stops_where_its_stage_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fail(monkeypatch, balance, code=1)
    with pytest.raises(SystemExit) as ended:
        balance.balance("at")
    assert (ended.value.code, calls) == (1, [("repro", "-q", "pretrain@at")])


def test_dvc_runs_stages_under_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes first on the PATH."""
    fake = tmp_path / "dvc"
    fake.write_text('#!/bin/sh\necho "$@" > called\nprintf %s "$PATH" > path\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "BIN", tmp_path)
    assert dvc.dvc("repro", "-f") == 3
    assert (tmp_path / "called").read_text() == "repro -f\n"
    assert (tmp_path / "path").read_text().startswith(f"{tmp_path}:")


def test_the_module_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.project", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the whole graph" in done.stdout or "Run what changed in the graph" in done.stdout
