import errno
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import atomic_file, atomic_folder, held, locked, save_array, sha256
from pipeline.project.dependencies import ROOT


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with pytest.raises(KeyError), atomic_file(target) as file:
        file.write_text("half")
        raise KeyError
    assert list(target.parent.iterdir()) == []
    with atomic_file(target) as file:
        file.write_text("whole")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
    assert target.read_text() == "whole"


def test_a_file_keeps_its_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_file(target) as file:
        file.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    with atomic_file(target) as file:
        file.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_folder_keeps_its_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with atomic_folder(target) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyError), atomic_folder(target) as folder:
        (folder / "half").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["f", "old"]
    with atomic_folder(target) as folder:
        (folder / "new").touch()
        assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.iterdir()] == ["new"]


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_what_killed_processes_left_half_written_is_removed(
    make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    target = tmp_path / "data [1]"
    for process in (ended.pid, os.getpid(), os.getppid()):
        (tmp_path / f"{target.name}.{process}.partial").mkdir()
        (tmp_path / f"{target.name}.{process}.partial" / "half").touch()
    (tmp_path / f"other.{ended.pid}.partial").touch()
    (tmp_path / f"{target.name}.old.partial").touch()
    with make(target) as partial:
        if make is atomic_file:
            partial.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            target.name,
            f"{target.name}.{os.getppid()}.partial",  # this process lives
            f"other.{ended.pid}.partial",
            f"{target.name}.old.partial",
        ]
    )


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_a_full_disk_names_the_path_and_leaves_nothing(
    make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    target = tmp_path / "a"
    with pytest.raises(RuntimeError, match="behind") as raised, make(target):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("an error of the system is behind this") from error
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.filename == str(target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 100, 100_000])
def test_an_array_that_does_not_fit_is_an_error(count: int, tmp_path: Path) -> None:
    """np.save writes a part of a small one, and says nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save_array(tmp_path / "whole.npy", np.arange(count))
    assert np.load(tmp_path / "whole.npy").tolist() == list(range(count))
    resource.setrlimit(resource.RLIMIT_FSIZE, (132, before[1]))
    try:
        with pytest.raises(OSError, match=r"labels\.npy"):
            save_array(tmp_path / "labels.npy", np.arange(count))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_lock_is_held_by_one_at_a_time_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    assert not held(path)
    with locked(path):
        assert held(path)
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
    assert not held(path)
    with locked(path, wait=False):
        assert held(path)
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    assert not held(path)


def test_the_system_frees_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from pipeline.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert held(path)
        process.kill()
    assert not held(path)


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    def made(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return sha256(folder)

    assert made(a="1", b="2") == made(b="2", a="1")
    assert len({made(a="1", b="2"), made(a="1", b="3"), made(a="1", c="2"), made(a="12"), made(a="1")}) == 5


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(range(256)) * 5000)  # more than one block
    assert sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "nothing")
