import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.records import place
from pipeline.records.place import about, here, place_of
from pipeline.records.record import recording

NAMES = ["check", "prepare", "teacher@big", "distill@alone", "distill@kd", "evaluate@alone", "report"]


def plan(seconds: dict[str, float] | None = None, still: tuple[str, ...] = ("check",)) -> dict[str, Any]:
    known = seconds or {}
    stages = [{"name": name, "runs": name not in still, "seconds": known.get(name)} for name in NAMES]
    return {"params": "", "records": "records", "start": 3.0, "jobs": 1, "stages": stages}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process that DVC started as stage distill@kd, with a plan."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_STAGE", "distill@kd")
    Path("params.yaml").write_text("train: {}\n")
    Path(".work").mkdir()
    seconds = dict.fromkeys(NAMES, 10.0)
    made = plan(seconds) | {"params": place.params_key(Path("params.yaml"))}
    (tmp_path / place.PLAN).write_text(json.dumps(made))
    here.cache_clear()
    yield tmp_path
    here.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "about 1 s"),
        (89, "about 89 s"),
        (90, "about 2 min"),
        (2400, "about 40 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_a_length_of_time_is_rounded(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_a_place_counts_all_stages_and_those_of_its_kind(tmp_path: Path) -> None:
    found = [place_of(name, plan(), tmp_path).words for name in NAMES]
    assert found[0] == "stage 1 of 7"
    assert found[2] == "stage 3 of 7, teacher 1 of 1"
    assert found[4] == "stage 5 of 7, run 2 of 2"


def test_the_time_left_is_that_of_this_stage_and_of_those_after_it_that_run(tmp_path: Path) -> None:
    seconds = {name: 100.0 * n for n, name in enumerate(NAMES)}
    found = place_of("distill@kd", plan(seconds, still=("evaluate@alone",)), tmp_path)
    assert (found.planned, found.whole, found.after) == (397.0, 400.0, 600.0)
    assert found.left(0.0) == "about 17 min left"  # 1000 s
    assert found.left(300.0) == "about 12 min left"
    assert found.left(5000.0) == "about 10 min left"  # late: only the others are left
    assert found.left(390.0, least=300.0) == found.left(5000.0, least=300.0) == "about 15 min left"


def test_what_runs_at_the_same_time_takes_a_part_of_the_time(tmp_path: Path) -> None:
    made = plan(dict.fromkeys(NAMES, 60.0)) | {"jobs": 3}
    found = place_of("distill@alone", made, tmp_path)
    assert (found.words, found.whole) == ("stage 4 of 7, run 1 of 2", 60.0)
    assert found.after == 20.0 + 20.0 + 60.0  # distill, evaluate, report
    (tmp_path / "records/distill").mkdir(parents=True)
    (tmp_path / "records/distill/kd.json").write_text(json.dumps({"seconds": 30.0}))
    made["stages"][4]["seconds"] = None
    assert place_of("distill@alone", made, tmp_path).after == 10.0 + 20.0 + 60.0


def test_without_a_plan_earlier_stages_of_the_same_kind_say_how_long(tmp_path: Path) -> None:
    for file, seconds in (
        ("distill/alone", 20.0),
        ("evaluate/old", 4.0),
        ("evaluate/kd", 6.0),
        ("report", 2.0),
    ):
        (tmp_path / "records" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"records/{file}.json").write_text(json.dumps({"seconds": seconds}))
    found = place_of("distill@kd", plan(), tmp_path)
    assert (found.planned, found.whole, found.after) == (None, 20.0, 7.0)
    (tmp_path / "records/report.json").unlink()
    assert place_of("distill@kd", plan(), tmp_path).left(0.0) == ""  # nobody knows about the report
    assert place_of("teacher@big", plan(), tmp_path).at(0.0) == "stage 3 of 7, teacher 1 of 1"


def test_a_stage_knows_its_place(stage: Path) -> None:
    found = here()
    assert found is not None
    assert found.at(4.0) == "stage 5 of 7, run 2 of 2, about 26 s left"


@pytest.mark.parametrize("what", ["no stage", "other params", "no plan", "damaged", "unknown stage"])
def test_without_a_plan_for_it_nothing_is_said(
    what: str, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match what:
        case "no stage":
            monkeypatch.delenv("DVC_STAGE")
        case "other params":
            Path("params.yaml").write_text("train: {epochs: 3}\n")
        case "no plan":
            place.PLAN.unlink()
        case "damaged":
            place.PLAN.write_text('{"params": ')
        case "unknown stage":
            monkeypatch.setenv("DVC_STAGE", "distill@new")
    assert here() is None
    assert "DVC_ROOT" in os.environ


def test_a_record_has_what_was_planned(stage: Path) -> None:
    with recording(stage / "r.json", "distill", "kd", {}):
        pass
    assert json.loads((stage / "r.json").read_text())["details"]["planned_seconds"] == 7.0
    here.cache_clear()
    place.PLAN.unlink()
    with recording(stage / "r.json", "distill", "kd", {}):
        pass
    assert "planned_seconds" not in json.loads((stage / "r.json").read_text())["details"]
