"""The file of stored answers: what counts as written, what a full disk does, and what is swept."""

import gc
import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answered import content, train
from small_runs import SmallRuns

from pipeline.files import write_at
from pipeline.runs import answer_file
from pipeline.runs.answer_file import AnswerFile


def test_what_is_half_written_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer counts only after the file that it is in is on the disk."""
    done: list[int | str] = []
    put, fsync = write_at, os.fsync

    def noted_put(file: int, content: bytes | memoryview, position: int) -> None:
        done.append(len(content))
        put(file, content, position)

    def noted_fsync(file: int) -> None:
        done.append("on disk")
        fsync(file)

    monkeypatch.setattr(answer_file, "write_at", noted_put)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    file, rows = AnswerFile(tmp_path, "logits", (3,), rows=5, views=2), np.array([1, 4])
    file.write(1, rows, torch.arange(6.0).view(2, 3))
    assert done == [6, 6, "on disk", 1, 1, "on disk"]
    assert file.lacks(1, np.arange(5)).tolist() == [True, False, True, True, False]
    assert file.lacks(0, np.arange(5)).all()
    assert file.read(1, np.array([4, 1])).tolist() == [[3, 4, 5], [0, 1, 2]]


def test_who_needs_fewer_views_takes_none_away(tmp_path: Path) -> None:
    AnswerFile(tmp_path, "logits", (3,), rows=5, views=2).write(1, np.array([3]), torch.ones(1, 3))
    before = content(tmp_path)
    AnswerFile(tmp_path, "logits", (3,), rows=5, views=1)
    assert content(tmp_path) == before


def test_a_disk_that_takes_less_than_asked_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: pwrite(file, data[:5], place))
    file = AnswerFile(tmp_path, "map layer1.0/relu", (2, 4), rows=3, views=1)
    file.write(0, np.array([2]), torch.arange(8.0).view(1, 2, 4))
    assert file.read(0, np.array([2])).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert sorted(content(tmp_path)) == ["map-layer1.0%2frelu.answers", "map-layer1.0%2frelu.there"]


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"logits\.answers"):
            AnswerFile(tmp_path, "logits", (300,), rows=5, views=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def used_since(file: AnswerFile, days: float) -> AnswerFile:
    os.utime(file.there, (days * 86400, days * 86400))
    return file


def filled(folder: Path, name: str) -> AnswerFile:
    """A part of nearly a megabyte."""
    file = AnswerFile(folder, name, (1000,), rows=400, views=1)
    file.write(0, np.arange(400), torch.ones(400, 1000))
    return file


def left(folder: Path) -> set[str]:
    return {file.stem for file in folder.rglob("*.answers")}


def test_what_was_used_longest_ago_is_swept_beyond_the_budget(tmp_path: Path) -> None:
    for day, (teacher, name) in enumerate([("a", "old"), ("b", "oldest"), ("b", "new"), ("a", "newest")]):
        used_since(filled(tmp_path / teacher, name), days=10 if name == "old" else day + 11)
    used_since(filled(tmp_path / "b", "oldest"), days=1)
    assert answer_file.sweep(tmp_path, views_gb=1.0) == 0.0
    assert answer_file.sweep(tmp_path, views_gb=0.7e-3) == pytest.approx(0.8e-3, rel=0.02)
    assert left(tmp_path) == {"old", "new", "newest"}
    answer_file.sweep(tmp_path, views_gb=0.5e-3)
    assert left(tmp_path) == {"new", "newest"}
    answer_file.sweep(tmp_path, views_gb=0.3e-3)
    assert left(tmp_path) == {"newest"}
    assert not (tmp_path / "b").exists()
    answer_file.sweep(tmp_path, views_gb=0.0)
    assert not list(tmp_path.iterdir())


def hold(folder: Path, ready: Any, done: Any) -> None:
    file = filled(folder, "theirs")
    ready.set()
    done.wait()
    assert file.read(0, np.array([399])).sum() == 1000


def test_what_is_in_use_is_not_swept(tmp_path: Path) -> None:
    """By this process, or by another one."""
    processes = multiprocessing.get_context("fork")
    ready, done = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(tmp_path / "a", ready, done), daemon=True)
    other.start()
    assert ready.wait(60)
    ours = filled(tmp_path / "a", "ours")
    filled(tmp_path / "b", "free")
    answer_file.sweep(tmp_path, views_gb=0.0)
    assert left(tmp_path) == {"ours", "theirs"}
    done.set()
    other.join()
    assert other.exitcode == 0
    assert ours.read(0, np.array([7])).sum() == 1000
    answer_file.sweep(tmp_path, views_gb=0.0)
    assert left(tmp_path) == {"ours"}


def test_answers_without_a_note_that_they_are_there_do_not_count_nor_a_note_without_them(
    tmp_path: Path,
) -> None:
    """As when a sweep, or a person's, was stopped."""
    for suffix in (".there", ".answers"):
        filled(tmp_path / "a", "logits")
        (tmp_path / "a" / f"logits{suffix}").unlink()
        again = AnswerFile(tmp_path / "a", "logits", (1000,), rows=400, views=1)
        assert again.lacks(0, np.arange(400)).all()
    again.write(0, np.arange(400), torch.ones(400, 1000))
    again.there.unlink()
    answer_file.sweep(tmp_path, views_gb=0.0)
    assert not list(tmp_path.iterdir())


def test_a_training_sweeps_before_it_adds_and_says_so(
    small: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(small, "kd", tmp_path)
    assert train(small, "kd", tmp_path, flip=0.4).made == first.made
    assert len(list((tmp_path / "answers").iterdir())) == 2
    assert "were removed" not in capsys.readouterr().out
    gc.collect()  # what a process has open, it uses
    size = max(file.stat().st_blocks for file in (tmp_path / "answers").rglob("*.answers")) * 512e-9
    train(small, "kd", tmp_path, flip=0.3, views_gb=size / answer_file.KEPT)
    assert "kd: " in (printed := capsys.readouterr().out)
    assert "GB of answers that were used longest ago were removed" in printed
    assert len(list((tmp_path / "answers").iterdir())) == 2
    assert train(small, "kd", tmp_path, flip=0.4).made == 0  # it was used after the first
    assert train(small, "kd", tmp_path).made == first.made
