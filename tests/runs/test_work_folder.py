from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.work_folder import work_folder
from pipeline.settings import InputError

DEPENDS: dict[str, Any] = {"settings": {"epochs": 3}, "inputs": {"data": "d", "code": "c"}}


def folder_for(work: Path, *, name: str = "big", **depends: Any) -> Path:
    """The folder of a training that stops with an error."""
    found = []
    with (
        pytest.raises(RuntimeError),
        work_folder(work, "teacher", name, DEPENDS | depends, is_main=True) as folder,
    ):
        found.append(folder)
        raise RuntimeError
    return found[0]


def test_the_same_training_cannot_run_twice_at_a_time(tmp_path: Path) -> None:
    twice = pytest.raises(
        InputError, match=r"teacher big is already being trained by another process .*Wait for it"
    )
    with work_folder(tmp_path, "teacher", "big", DEPENDS, is_main=True):
        with twice, work_folder(tmp_path, "teacher", "big", DEPENDS, is_main=True):
            pass
        with work_folder(tmp_path, "teacher", "big", DEPENDS | {"settings": {}}, is_main=True):
            assert len(list(tmp_path.glob("teacher-big-*"))) == 2
    assert not list(tmp_path.iterdir())


def test_other_processes_of_one_launcher_share_the_folder(tmp_path: Path) -> None:
    with work_folder(tmp_path, "teacher", "big", DEPENDS, is_main=True) as folder:
        with work_folder(tmp_path, "teacher", "big", DEPENDS, is_main=False) as other:
            assert other == folder
        assert folder.is_dir()  # only the main process removes it
    assert not folder.exists()


@pytest.mark.parametrize(("files", "left"), [((), 0), (("distill.state",), 1)])
def test_a_refused_training_leaves_only_what_was_trained(
    files: tuple[str, ...], left: int, tmp_path: Path
) -> None:
    with (
        pytest.raises(InputError, match="no"),
        work_folder(tmp_path, "teacher", "big", DEPENDS, is_main=True) as folder,
    ):
        for name in files:
            (folder / name).touch()
        raise InputError("no")
    assert len(list(tmp_path.glob("teacher-big-*"))) == left


def test_a_stopped_training_finds_its_state_again(tmp_path: Path) -> None:
    stopped = folder_for(tmp_path)
    (stopped / "distill.state").touch()
    with work_folder(tmp_path, "teacher", "big", DEPENDS, is_main=True) as folder:
        assert folder == stopped
        assert (folder / "distill.state").exists()
    assert not stopped.exists()


@pytest.mark.parametrize(
    "other",
    [
        {"inputs": {"data": "d", "code": "new"}},
        {"inputs": {"data": "new", "code": "c"}},
        {"settings": {"epochs": 4}},
        {"name": "small"},
    ],
)
def test_other_code_inputs_settings_or_names_have_another_folder(
    other: dict[str, Any], tmp_path: Path
) -> None:
    assert folder_for(tmp_path, **other) != folder_for(tmp_path)


def test_equal_code_inputs_and_settings_have_the_same_folder(tmp_path: Path) -> None:
    again = folder_for(tmp_path, inputs={"code": "c", "data": "d"}, settings={"epochs": 3})
    assert again == folder_for(tmp_path)
