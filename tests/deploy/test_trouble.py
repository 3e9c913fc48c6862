"""Errors of the system are one paragraph with the path, an exit code, and nothing half-written."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.deploy.__main__ import main
from pipeline.deploy.trouble import WORDS, in_words
from pipeline.project.dependencies import ROOT


@pytest.mark.parametrize("number", WORDS)
def test_each_error_names_the_path_and_what_to_do(number: int) -> None:
    said = in_words(OSError(number, os.strerror(number), "/there/file"))
    assert said is not None
    assert said.startswith(f"{WORDS[number]}: /there/file")
    assert said.endswith("Nothing was left half-written.")


def test_a_full_disk_says_how_much_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(place: Path) -> "shutil._ntuple_diskusage":
        asked.append(place)
        return shutil._ntuple_diskusage(9_000_000_000, 8_997_000_000, 3_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    said = in_words(OSError(errno.ENOSPC, "No space", str(tmp_path / "not/yet/there")))
    assert said is not None
    assert " (3 of 9,000 MB are free). Free some space, and start again." in said
    assert asked == [tmp_path]  # the nearest folder that is there


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", errno.ENOSPC),
        ('IoError(Os { code: 13, kind: PermissionDenied, message: "Permission denied" })', errno.EACCES),
        ("(sqlite3.OperationalError) database or disk is full [SQL: ...]", errno.ENOSPC),
        ("attempt to write a readonly database", errno.EROFS),
        ("[ONNXRuntimeError] : 1 : FAIL : open file x.onnx fail, errcode = 30 - Read-only file system", 30),
    ],
)
def test_the_errors_of_libraries_are_known_by_their_text(text: str, number: int) -> None:
    said = in_words(RuntimeError(text))
    assert said is not None
    assert said.startswith(WORDS[number])


def test_an_error_behind_another_one_is_found_and_a_mistake_of_ours_is_not() -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "f")
        except OSError as error:
            raise RuntimeError("the writer has failed") from error

    with pytest.raises(RuntimeError) as raised:
        wrapped()
    assert (in_words(raised.value) or "").startswith("The quota of this user is used up: f")
    assert in_words(ValueError("a mistake")) is None
    mistake = AttributeError("a mistake while a missing file is dealt with")
    mistake.__context__ = FileNotFoundError(errno.ENOENT, "No such file or directory", "f")
    assert in_words(mistake) is None
    assert in_words(OSError("what a library says of its own")) is None


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from pipeline.deploy.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_predictor_that_does_not_fit_is_not_half_written(tmp_path: Path) -> None:
    """A file may not be larger than 4,000 bytes here; a full disk gives the same kind of error."""
    out = tmp_path / "predictor.pyz"
    out.write_text("the old one")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "4000", "pack", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"The file would be larger than this user may make it: {out}.")
    assert [path.name for path in tmp_path.iterdir()] == ["predictor.pyz"]
    assert out.read_text() == "the old one"


def test_a_folder_that_is_a_file_and_a_folder_nobody_can_write_are_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["pack", "--out", str(tmp_path / "file" / "p.pyz")]) == 2
    assert f"A file is where a folder must be: {tmp_path / 'file' / 'p.pyz'}" in capsys.readouterr().err
    assert main(["pack", "--out", "/proc/p.pyz"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_answers_that_cannot_be_written_end_in_a_sentence(bundle: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.deploy", "info", str(bundle)],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("There is no space left on the disk")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
