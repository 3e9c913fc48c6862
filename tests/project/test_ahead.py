"""What `dvc repro` will do, from what DVC prints."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.project import ahead
from pipeline.project.ahead import Stage, read_dot, stages_ahead, states
from pipeline.project.dvc import BIN, printed_by_dvc
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]
DOT = """strict digraph {
"check";
"teacher@big";
"distill@a";
"distill@b";
"report";
"check" -> "teacher@big";
"teacher@big" -> "distill@a";
"teacher@big" -> "distill@b";
"distill@a" -> "report";
"distill@b" -> "report";
}
"""


def found(changed: set[str], cached: set[str] = frozenset()) -> dict[str, str]:  # type: ignore[assignment]
    return {each.name: each.state for each in states(*read_dot(DOT), changed=changed, cached=cached)}


def test_what_follows_a_stage_that_runs_runs_and_its_neighbours_do_not() -> None:
    assert found({"distill@a"}) == {
        "check": "up to date",
        "teacher@big": "up to date",
        "distill@a": "runs",
        "distill@b": "up to date",
        "report": "runs",
    }
    assert set(found({"check"}).values()) == {"runs"}
    assert set(found(set()).values()) == {"up to date"}


def test_a_stage_comes_out_of_the_cache_if_nothing_runs_before_it() -> None:
    assert found({"distill@a"}, {"distill@a"})["distill@a"] == "cached"
    assert found({"distill@a"}, {"distill@a"})["report"] == "runs"
    assert found({"teacher@big", "distill@a"}, {"distill@a"})["distill@a"] == "runs"
    assert found(set(), {"distill@a"})["distill@a"] == "up to date"


def test_a_stage_has_a_kind_and_a_key() -> None:
    assert (Stage("distill@kd", "runs").kind, Stage("distill@kd", "runs").key) == ("distill", "kd")
    assert (Stage("report", "runs").kind, Stage("report", "runs").key) == ("report", "")


def test_dvc_is_asked_and_its_own_order_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which DVC draws the stages is the one in which it takes them, since dvc.yaml goes down."""
    (tmp_path / "tool").mkdir()
    for name in ("dvc.yaml", "tool/dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    subprocess.run([BIN / "dvc", "init", "-q", "--no-scm"], check=True)
    order, before = read_dot(printed_by_dvc("dag", "--dot"))
    dry = printed_by_dvc("repro", "--dry", "-f")
    assert order == [line.split("'")[1] for line in dry.splitlines() if line.startswith("Running stage")]
    assert len(order) == 24
    assert order[0] == ahead.ALWAYS[0]
    assert set(before["pretrain@kd"]) == {"check", "prepare", "teacher@big"}
    monkeypatch.setattr(ahead, "quiet_dvc", lambda *arguments: 0)
    stages = stages_ahead()
    assert {stage.state for stage in stages} == {"runs"}
    assert stages[0].name == "check"
    with pytest.raises(InputError, match="`dvc dag nothing` failed"):
        printed_by_dvc("dag", "nothing")


def test_a_stage_with_other_settings_is_not_taken_for_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([BIN / "dvc", "init", "-q", "--no-scm"], check=True)
    Path("dvc.yaml").write_text(
        "stages: {train: {cmd: cp params.yaml out.txt, params: [p], outs: [out.txt]}}\n"
    )
    monkeypatch.setattr(ahead, "quiet_dvc", lambda *arguments: 0)

    def state() -> str:
        (stage,) = stages_ahead()
        return stage.state

    Path("params.yaml").write_text("p: 1\n")
    assert state() == "runs"
    subprocess.run([BIN / "dvc", "repro", "-q"], check=True)
    assert state() == "up to date"
    Path("out.txt").unlink()
    assert state() == "cached"
    Path("params.yaml").write_text("p: 2\n")
    assert "is cached" in printed_by_dvc("repro", "--dry")  # which is not true
    assert state() == "runs"


def test_params_that_are_refused_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "quiet_dvc", lambda *arguments: 255)
    with pytest.raises(SystemExit) as ended:
        stages_ahead()
    assert ended.value.code == 255
