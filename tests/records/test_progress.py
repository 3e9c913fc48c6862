import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.files import held
from pipeline.records import progress as progress_module
from pipeline.records.progress import lock_of, progress
from pipeline.records.record import Curves, Record

CURVE = "distill/seed-0"
KILLED_TRY = """
import os, signal, sys
from pathlib import Path
from pipeline.records import progress as progress_module
from pipeline.records.record import Record

progress_module.EVERY = -1.0
with progress_module.progress(Record("distill", sys.argv[2], {}, id="killed"), Path(sys.argv[1])) as on_point:
    on_point("distill/seed-0", {"epoch": [1.0], "loss": [2.0], "seconds": [0.5]})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def record() -> Record:
    return Record("distill", "kd", {"lr": 0.1})


def points(*losses: float) -> Curves:
    return {
        "epoch": [1.0 + n for n in range(len(losses))],
        "loss": list(losses),
        "seconds": [0.5 * (n + 1) for n in range(len(losses))],
    }


def file_of(record: Record, folder: Path) -> Path:
    return folder / f"distill-kd-{record.id}.json"


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def leave_killed_try(folder: Path, name: str = "kd") -> list[Path]:
    """The files that a process leaves which is killed while it trains."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_TRY, str(folder), name], cwd=Path(progress_module.__file__).parents[2]
    )
    assert killed.returncode < 0
    left = [folder / f"distill-{name}-killed{suffix}" for suffix in (".json", ".lock")]
    assert all(file.exists() for file in left)
    return left


def test_nothing_is_left_if_nobody_follows(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "EVERY", -1.0)
    folder = tmp_path / "live"
    with progress(record, folder) as on_point:
        on_point(CURVE, points(2.0))
        assert read(file_of(record, folder))["status"] == "RUNNING"
        assert held(lock_of(file_of(record, folder)))
    assert not list(folder.iterdir())


def test_points_are_written_every_two_seconds(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([0.0, 1.0, 2.5, 2.5, 3.0, 4.0, 5.0, 5.0])
    monkeypatch.setattr(
        progress_module, "time", SimpleNamespace(monotonic=lambda: next(moments), time=time.time)
    )
    losses = (1.0, 0.9, 0.8, 0.7, 0.6)
    file, written = file_of(record, tmp_path), []
    with progress(record, tmp_path) as on_point:
        for n in range(len(losses)):
            on_point(CURVE, points(*losses[: n + 1]))
            written.append(read(file)["curves"][CURVE]["loss"][-1] if file.exists() else None)
    assert written == [None, 0.9, 0.9, 0.9, 0.6]


@pytest.mark.parametrize(
    ("end", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_the_follower_sees_how_a_stage_ended(
    record: Record, tmp_path: Path, end: type[BaseException] | None, status: str
) -> None:
    (tmp_path / progress_module.FOLLOWER).touch()
    with pytest.raises(end) if end else nullcontext(), progress(record, tmp_path) as on_point:
        on_point(CURVE, points(2.0))
        on_point("distill/seed-1", points(3.0))
        if end:
            raise end
    file = file_of(record, tmp_path)
    assert read(file) == {
        "id": record.id,
        "stage": "distill",
        "name": "kd",
        "params": {"lr": 0.1},
        "curves": {CURVE: points(2.0), "distill/seed-1": points(3.0)},
        "status": status,
    }
    assert not held(lock_of(file))


def test_points_are_kept_in_the_record(record: Record, tmp_path: Path) -> None:
    with progress(record, tmp_path) as on_point:
        on_point(CURVE, points(2.0))
        on_point(CURVE, points(2.0, 1.0))
    assert record.curves == {CURVE: points(2.0, 1.0)}


def test_only_one_process_of_several_writes(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "EVERY", -1.0)
    with progress(record, tmp_path, write=False) as on_point:
        on_point(CURVE, points(2.0))
        assert not list(tmp_path.iterdir())
    assert record.curves == {}


def test_a_stage_that_trains_nothing_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / progress_module.FOLLOWER).touch()
    with progress(Record("pretrain", "kd", {}), tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [progress_module.FOLLOWER]


def test_a_follower_that_has_long_not_read_the_files_does_not_count(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / progress_module.FOLLOWER).touch()
    monkeypatch.setattr(progress_module, "PATIENCE", 0.0)
    with progress(record, tmp_path) as on_point:
        on_point(CURVE, points(2.0))
    assert [file.name for file in tmp_path.iterdir()] == [progress_module.FOLLOWER]


def test_the_next_try_removes_what_a_killed_one_left_if_nobody_follows(
    record: Record, tmp_path: Path
) -> None:
    left = leave_killed_try(tmp_path)
    of_another_run = leave_killed_try(tmp_path, "fitnet")
    with progress(record, tmp_path):
        assert not [file for file in left if file.exists()]
    assert all(file.exists() for file in of_another_run)


def test_what_a_killed_try_left_is_kept_for_a_follower(record: Record, tmp_path: Path) -> None:
    left = leave_killed_try(tmp_path)
    (tmp_path / progress_module.FOLLOWER).touch()
    with progress(record, tmp_path):
        pass
    assert all(file.exists() for file in left)


def test_a_try_that_is_still_running_is_never_removed(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "EVERY", -1.0)
    with progress(record, tmp_path) as on_point:
        on_point(CURVE, points(2.0))
        with progress(Record("distill", "kd", {}), tmp_path):
            assert file_of(record, tmp_path).exists()
            assert held(lock_of(file_of(record, tmp_path)))
