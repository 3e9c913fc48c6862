"""The commands that the Makefile calls."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import yaml

from pipeline.project import __main__ as project
from pipeline.project import balance, dvc, plots_page, results, run
from pipeline.project.ahead import ALWAYS
from pipeline.project.changed_code import changed_code, in_words
from pipeline.project.command import command
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]


def test_make_installs_with_a_python_outside_its_environment_even_if_that_is_active(tmp_path: Path) -> None:
    """The one inside has no pip, and `make` after a pull would say that Python has none."""
    for name in ("Makefile", "bootstrap.lock", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pipeline" / "project").mkdir(parents=True)
    (tmp_path / "pipeline" / "project" / "plots_page.py").touch()
    active = tmp_path / ".venv" / "bin"
    active.mkdir(parents=True)
    (active / "python3").symlink_to(sys.executable)
    env = os.environ | {"PATH": f"{active}:{os.environ['PATH']}"}
    env.pop("MAKEFLAGS", None)
    command = ["make", "-n", "setup"]
    printed = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    (installer,) = re.findall(r"^(\S+) -m pip install ", printed, re.MULTILINE)
    assert Path(installer).name == "python3"
    assert Path(installer).parent != active


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--help"], 0), (["fly"], 2)])
def test_what_can_be_called_is_listed(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        project.main(arguments)
    assert ended.value.code == code
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in project.COMMANDS)


def test_make_calls_these_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    called = set(re.findall(r"\$\(PROJECT\) (\w+)", makefile))
    assert called == set(project.COMMANDS) - {"new", "check", "dag", "slurm", "report", "predict", "deploy"}


@pytest.fixture
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()


@pytest.mark.parametrize("missing", ["dvc.yaml", "params.yaml"])
@pytest.mark.usefixtures("in_a_project")
def test_outside_of_a_project_a_sentence_says_so(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(missing).unlink()
    with pytest.raises(SystemExit) as ended:
        project.main(["run"])
    assert ended.value.code == 2
    assert "handdown new NAME --images FOLDER" in capsys.readouterr().err


@pytest.mark.usefixtures("in_a_project")
def test_options_have_defaults_and_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        project.main(["promote", "--help"])
    assert ended.value.code == 0
    assert "Register the student that is best on validation" in capsys.readouterr().out


@pytest.mark.usefixtures("in_a_project")
def test_a_mistake_is_a_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InputError("there is nothing here. Go there.")

    monkeypatch.setattr(run, "run", refuse)
    with pytest.raises(SystemExit) as ended:
        project.main(["run"])
    assert ended.value.code == 2
    assert "Error: there is nothing here. Go there." in capsys.readouterr().err


def fail(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str = "dvc", *, code: int
) -> list[tuple[str, ...]]:
    """Let dvc fail in this module, where it is called so; its calls are noted."""
    calls: list[tuple[str, ...]] = []

    def failing(*arguments: str) -> int:
        calls.append(arguments)
        return code

    monkeypatch.setattr(module, name, failing)
    return calls


@pytest.fixture
def nothing_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    monkeypatch.setattr(run, "stages_ahead", list)


@pytest.mark.usefixtures("nothing_ahead")
def test_a_graph_that_fails_shows_no_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/table.txt").write_text("the table\n")
    calls = fail(monkeypatch, run, code=255)
    with pytest.raises(SystemExit) as ended:
        run.run()
    assert ended.value.code == 255
    assert calls == [("repro",)]
    assert (tmp_path / plots_page.FILE).is_file()  # so that `dvc plots` works in a clone of a project


@pytest.mark.usefixtures("nothing_ahead")
@pytest.mark.parametrize(
    ("kill", "code"), [("INT", 130), ("TERM", 143)], ids=["Ctrl-C", "a signal to this process alone"]
)
def test_a_stopped_graph_ends_with_the_way_on(
    kill: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """DVC's own last word is that a stage failed."""
    (tmp_path / "params.yaml").write_text("runs: {}\n")
    program = tmp_path / "dvc"
    last = "kill -INT $$" if kill == "INT" else "while :; do sleep 0.1; done"  # a terminal sends it to both
    program.write_text(f"#!/bin/sh\ntrap 'echo ERROR >&2; exit 255' INT\nkill -{kill} $PPID\n{last}\n")
    program.chmod(0o755)
    monkeypatch.setattr("pipeline.project.dvc.BIN", tmp_path)
    with pytest.raises(SystemExit) as ended:
        command(run.run, arguments=[])
    assert ended.value.code == code
    said = capfd.readouterr().err
    assert "ERROR\n" in said
    assert said.splitlines()[-1].startswith("Stopped. What was trained so far is kept")


@pytest.mark.usefixtures("nothing_ahead")
def test_a_signal_while_dvc_starts_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Starting(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    (tmp_path / "params.yaml").write_text("runs: {}\n")
    program = tmp_path / "dvc"
    program.write_text("#!/bin/sh\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setattr("pipeline.project.dvc.BIN", tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Starting)
    with pytest.raises(SystemExit, match="143"):
        command(run.run, arguments=[])
    assert [bool(each.returncode) for each in started] == [
        True
    ]  # it has ended, by the signal or in its own way


@pytest.mark.usefixtures("in_a_project")
def test_there_is_nothing_to_show_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results yet\. Make them: handdown run"):
        results.report()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(InputError, match=r"no results yet\. Make them: handdown run"):
        results.predict("picture.png")


def stage_becomes(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[str, list[str], str]:
    """The program, its arguments and the PATH that `handdown stage ...` hands over to."""
    handed: list[tuple[str, list[str], dict[str, str]]] = []

    def hand_over(*call: Any) -> NoReturn:
        handed.append(call)
        sys.exit()

    monkeypatch.setattr(os, "execvpe", hand_over)
    with pytest.raises(SystemExit):
        project.main(["stage", *words])
    ((program, arguments, environment),) = handed
    return program, arguments, environment["PATH"]


def test_a_stage_runs_under_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    program, arguments, path = stage_becomes(monkeypatch, "report", "--plots", "plots")
    assert program == sys.executable
    assert arguments == [sys.executable, "-m", "stages.report", "--plots", "plots"]
    assert path.startswith(f"{Path(sys.executable).parent}{os.pathsep}")


def test_the_stage_of_every_start_needs_no_second_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a clone that has other code than this process."""
    for argv in ("before", "after"):
        monkeypatch.setattr(sys, "argv", [argv])
        monkeypatch.chdir(ROOT if argv == "before" else tmp_path)
        project.main(["stage", "installed", "--out", str(tmp_path / argv)])
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text() != ""
    (tmp_path / "stages").mkdir()
    _, arguments, _ = stage_becomes(monkeypatch, "installed", "--out", "file")
    assert arguments == [sys.executable, "-m", "stages.installed", "--out", "file"]


@pytest.mark.parametrize(
    ("launcher", "begins"),
    [
        ("python", [sys.executable]),
        ("python -X dev", [sys.executable, "-X", "dev"]),
        ("torchrun --nproc-per-node 4", ["torchrun", "--nproc-per-node", "4"]),
    ],
)
def test_a_launcher_starts_what_trains(
    launcher: str, begins: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(f"launcher: {launcher}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "knowledge", "pretrain", "distill"):
        program, arguments, _ = stage_becomes(monkeypatch, name, "--name", "kd")
        assert (program, arguments) == (begins[0], [*begins, "-m", f"stages.{name}", "--name", "kd"])
    _, arguments, _ = stage_becomes(monkeypatch, "export", "--name", "kd")
    assert arguments[0] == sys.executable


@pytest.mark.parametrize(
    ("launcher", "shown"),
    [("python", ""), ("python -c 'do evil'", "launcher: PYTHON -c 'do evil' -m stages.distill --name kd\n")],
)
def test_what_a_params_file_of_somebody_else_starts_is_printed_first(
    launcher: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"launcher": launcher}))
    monkeypatch.chdir(tmp_path)
    stage_becomes(monkeypatch, "distill", "--name", "kd")
    assert capsys.readouterr().out == shown.replace("PYTHON", sys.executable)
    stage_becomes(monkeypatch, "export", "--name", "kd")
    assert capsys.readouterr().out == ""


def test_no_command_of_the_graph_names_the_launcher() -> None:
    """Or else another launcher would make every training run again."""
    assert "launcher" not in (ROOT / "dvc.yaml").read_text()


def test_check_asks_again_although_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it says again what will run because code has changed."""
    calls = fail(monkeypatch, run, "quiet_dvc", code=7)
    for place in (ROOT, tmp_path):  # an older project has one dvc.yaml
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit) as ended:
            run.check()
        assert ended.value.code == 7
    assert calls == [("repro", "-f", "-s", first, "check") for first in ALWAYS]


def test_stages_with_other_code_are_found(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "distill").mkdir(parents=True)
    for name in ("prepare", "distill/kd", "distill/at"):
        (code / name).write_text(f"{name}\n")
    lock = tmp_path / "dvc.lock"
    assert changed_code(code, lock) == []  # nothing has run yet

    def ran(path: str, text: str) -> dict[str, list[dict[str, str]]]:
        other = {"path": "data", "md5": "0"}
        return {"deps": [other, {"path": f"{code}/{path}", "md5": hashlib.md5(text.encode()).hexdigest()}]}

    stages = {
        "check": {},
        "prepare": ran("prepare", "prepare\n"),
        "distill@kd": ran("distill/kd", "old\n"),
        "distill@at": ran("distill/at", "distill/at\n"),
        "distill@gone": ran("distill/gone", "old\n"),
    }
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    assert changed_code(code, lock) == ["distill@kd"]
    assert in_words(["distill@kd"], "handdown 2") == (
        "Code has changed since these stages ran, so they will run again with handdown 2: distill@kd. Stages "
        "after them run again if what these make changes."
    )
    assert in_words([], "handdown 2") == ""


@pytest.mark.usefixtures("nothing_ahead")
def test_the_table_is_printed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/table.txt").write_text("the table\n")
    monkeypatch.setattr(run, "dvc", lambda *arguments: 0)
    run.run()
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
    (tmp_path / "params.yaml").write_text("runs: {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "BIN", tmp_path)
    assert dvc.dvc("repro", "-f") == 3
    assert (tmp_path / "called").read_text() == "repro -f\n"
    assert (tmp_path / "path").read_text().startswith(f"{tmp_path}:")


@pytest.mark.parametrize(
    "text", ["", "\x00\x01", "a: " + "[" * 5000 + "]" * 5000, "a: 1\na: 2", "b: {a: 1, a: 2}"]
)
def test_params_that_dvc_cannot_read_are_a_sentence_before_dvc_says_less(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "BIN", tmp_path)
    with pytest.raises(
        InputError, match=r"^params\.yaml (cannot be read: .*(twice|deep|character)|must hold)"
    ):
        dvc.dvc("repro", "-q", "check")


def test_the_module_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.project", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the whole graph" in done.stdout or "Run what changed in the graph" in done.stdout
