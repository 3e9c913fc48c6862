import json
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import live
from pipeline.live import lock_of, shown
from pipeline.locks import held
from pipeline.record import Record


@pytest.fixture
def told() -> Record:
    return Record("distill", "kd", {"lr": 0.1}, curves={"distill/seed-0": {"epoch": [1.0], "loss": [2.0], "seconds": [0.5]}})


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_where_nobody_looks_on_nothing_is_left(told: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.0)
    with shown(told, tmp_path / "live/kd.json") as tell:
        tell()
        assert read(tmp_path / "live/kd.json")["status"] == "RUNNING"
        assert held(lock_of(tmp_path / "live/kd.json"))
    assert not list(tmp_path.glob("live/*"))


def test_points_are_written_now_and_then(told: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 2.5, 2.5, 3.0, 4.0, 5.0, 5.0])
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: next(moments), time=time.time))
    with shown(told, tmp_path / "kd.json") as tell:
        seen = []
        for loss in (1.0, 0.9, 0.8, 0.7, 0.6):
            told.curves["distill/seed-0"]["loss"].append(loss)
            tell()
            seen.append(read(tmp_path / "kd.json")["curves"]["distill/seed-0"]["loss"][-1] if (tmp_path / "kd.json").exists() else None)
    assert seen == [None, 0.9, 0.9, 0.9, 0.6]


@pytest.mark.parametrize(("end", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_who_looks_on_sees_the_end(told: Record, tmp_path: Path, end: type[BaseException] | None, status: str) -> None:
    (tmp_path / live.FOLLOWER).touch()
    with pytest.raises(end) if end else nullcontext(), shown(told, tmp_path / "kd.json"):
        told.curves["distill/seed-1"] = told.curves["distill/seed-0"]
        if end:
            raise end
    kept = read(tmp_path / "kd.json")
    assert kept == {"id": told.id, "stage": "distill", "name": "kd", "params": {"lr": 0.1}, "curves": told.curves, "status": status}
    assert not held(lock_of(tmp_path / "kd.json"))


def test_a_stage_that_trains_nothing_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / live.FOLLOWER).touch()
    with shown(Record("pretrain", "kd", {}), tmp_path / "kd.json"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [live.FOLLOWER]


def test_who_has_not_looked_for_long_looks_no_more(told: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / live.FOLLOWER).touch()
    monkeypatch.setattr(live, "PATIENCE", 0.0)
    with shown(told, tmp_path / "kd.json"):
        pass
    assert not (tmp_path / "kd.json").exists()
