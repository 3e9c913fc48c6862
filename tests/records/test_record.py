import json
import resource
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.records import energy
from pipeline.records.record import SCHEMA, Record, Result, load_record, recording, write_metrics
from pipeline.settings import InputError


@pytest.fixture(autouse=True)
def machine_without_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this machine counts its energy and has a GPU must not matter here."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setitem(sys.modules, "torch", None)


def test_a_record_says_what_ran(tmp_path: Path) -> None:
    with recording(tmp_path / "r.json", "distill", "kd", {"a": 1}) as record:
        record.metrics["val"] = 0.5
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["stage"], written["name"], written["params"], written["metrics"]) == (
        "distill",
        "kd",
        {"a": 1},
        {"val": 0.5},
    )
    assert written["schema"] == SCHEMA == 3
    assert datetime.fromisoformat(written["finished"]) >= datetime.fromisoformat(written["started"])
    assert written["environment"]["torch"]
    assert written["environment"]["device"] == "cpu"
    assert written["environment"]["processes"] == 1
    with recording(tmp_path / "again.json", "distill", "kd", {"a": 1}):
        pass
    assert json.loads((tmp_path / "again.json").read_text())["id"] != written["id"]


def test_a_record_says_how_many_processes_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with recording(tmp_path / "r.json", "distill", "kd", {}):
        pass
    assert json.loads((tmp_path / "r.json").read_text())["environment"]["processes"] == 4


def test_a_record_says_what_the_stage_took_of_the_machine(tmp_path: Path) -> None:
    begun = time.process_time()  # what was computed before it does not count
    with recording(tmp_path / "r.json", "distill", "kd", {}):
        end, before = time.process_time() + 0.3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while time.process_time() < end:
            pass
        large = bytes(range(256)) * (before * 4 + 400_000)  # 100 MB more than ever before
    used = json.loads((tmp_path / "r.json").read_text())["details"]["usage"]
    assert 0.3 <= used["cpu_s"] <= time.process_time() - begun + 0.02
    assert used["memory_mb"] * 1e6 >= len(large)


def test_a_failed_stage_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(KeyError), recording(tmp_path / "r.json", "distill", "kd", {}):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_metric_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="JSON"),
        recording(tmp_path / "r.json", "distill", "kd", {}) as record,
    ):
        record.metrics["val"] = float("nan")
    assert not list(tmp_path.iterdir())


def test_a_result_is_added_to_what_the_record_holds(tmp_path: Path) -> None:
    names = ("metrics", "curves", "details", "inputs", "outputs")
    old: dict[str, Any] = {name: {"old": name} for name in names}
    new: dict[str, Any] = {name: {"new": name} for name in names}
    record = Record("distill", "kd", {}, **old)
    record.add(Result(**new))
    assert {name: getattr(record, name) for name in names} == {
        name: {"old": name, "new": name} for name in names
    }


def test_a_loaded_record_is_the_one_that_was_written(tmp_path: Path) -> None:
    with recording(tmp_path / "r.json", "distill", "kd", {"a": 1}) as record:
        record.add(Result(metrics={"val": 0.5}, curves={"c": {"epoch": [1.0]}}, inputs={"code": "1"}))
    assert load_record(tmp_path / "r.json") == record


@pytest.mark.parametrize(
    ("stage", "name", "target"), [("distill", "kd", "distill@kd"), ("prepare", "prepare", "prepare")]
)
def test_a_record_of_schema_1_is_refused_with_the_command_that_writes_it_again(
    tmp_path: Path, stage: str, name: str, target: str
) -> None:
    with recording(tmp_path / "r.json", stage, name, {}):
        pass
    old = json.loads((tmp_path / "r.json").read_text()) | {"schema": 1}
    (tmp_path / "r.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=rf"has schema 1, but schema 3 .* `dvc repro -f -s {target}`"):
        load_record(tmp_path / "r.json")


def test_metrics_for_dvc_are_rounded(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", {"accuracy": 0.123456}, digits=4)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"accuracy": 0.1235}
