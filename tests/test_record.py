import json
import sys
from datetime import datetime
from pathlib import Path

import pytest

from pipeline import energy
from pipeline.record import record, sha256


@pytest.fixture(autouse=True)
def uncounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this machine counts its energy and has a GPU is no matter here."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setitem(sys.modules, "torch", None)


def test_a_record_tells_what_ran(tmp_path: Path) -> None:
    with record(tmp_path / "r.json", "distill", "kd", {"a": 1}) as kept:
        kept.metrics["val"] = 0.5
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["stage"], told["name"], told["params"], told["metrics"]) == ("distill", "kd", {"a": 1}, {"val": 0.5})
    assert datetime.fromisoformat(told["finished"]) >= datetime.fromisoformat(told["started"])
    assert told["environment"]["torch"]
    assert told["environment"]["device"] == "cpu"
    with record(tmp_path / "again.json", "distill", "kd", {"a": 1}):
        pass
    assert json.loads((tmp_path / "again.json").read_text())["id"] != told["id"]


def test_a_failed_stage_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(KeyError), record(tmp_path / "r.json", "distill", "kd", {}):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"), record(tmp_path / "r.json", "distill", "kd", {}) as kept:
        kept.metrics["val"] = float("nan")
    assert not list(tmp_path.iterdir())


def test_the_hash_of_a_folder_knows_names_and_contents(tmp_path: Path) -> None:
    def made(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return sha256(folder)

    assert made(a="1", b="2") == made(b="2", a="1")
    assert len({made(a="1", b="2"), made(a="1", b="3"), made(a="1", c="2"), made(a="12"), made(a="1")}) == 5
