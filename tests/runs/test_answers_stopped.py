"""Stored answers when their making is stopped, shared by two processes, or undone."""

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from answered import IMAGES, QUICK, VIEWS, content, is_equal, small_run, train
from small_runs import SmallRuns
from torch import Tensor

from pipeline import checkpoint
from pipeline.files import locked, write_at
from pipeline.runs import answer_file, answers
from pipeline.runs.answer_file import AnswerFile
from pipeline.runs.student import distill


class Stop(Exception):
    """As if the process had been killed."""


@pytest.mark.parametrize("inside", [False, True], ids=["between two batches", "within a batch"])
def test_what_was_interrupted_goes_on_and_ends_equal(
    inside: bool, small: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "AT_ONCE", 4)
    monkeypatch.setattr(answers, "images_at_once", lambda size, most: most)
    whole = train(small, "at", tmp_path / "whole")
    put, left = write_at, 100

    def stop(file: int, content: bytes | memoryview, position: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            put(file, content[: len(content) // 2], position)
            raise Stop
        put(file, content, position)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(answer_file, "write_at", stop) if inside else stop_after(patched, 4)
        train(small, "at", tmp_path / "stopped")
    rest = train(small, "at", tmp_path / "stopped")
    assert 0 < rest.made < whole.made
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert is_equal(rest, whole)


def stop_after(patched: pytest.MonkeyPatch, writes: int) -> None:
    write, left = AnswerFile.write, writes

    def stopped(self: AnswerFile, *args: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop
        write(self, *args)

    patched.setattr(AnswerFile, "write", stopped)


def train_at(small: SmallRuns, folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    done = train(small, "at", folder, seed=seed, views=4, training={"steps": 12})
    (folder / f"made-{seed}").write_text(str(done.made))


def test_two_processes_make_each_answer_once_and_the_same(small: SmallRuns, tmp_path: Path) -> None:
    small_run(small, "at")
    processes = multiprocessing.get_context("fork")
    for folder, seeds in ((tmp_path / "one", (0,)), (tmp_path / "two", (0, 1))):
        folder.mkdir()
        running = [processes.Process(target=train_at, args=(small, folder, seed)) for seed in seeds]
        for process in running:
            process.start()
        for process in running:
            process.join()
            assert process.exitcode == 0
        assert sum(int((folder / f"made-{seed}").read_text()) for seed in seeds) == 4 * IMAGES
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_view_that_another_process_makes_comes_last(small: SmallRuns, tmp_path: Path) -> None:
    """Its lock is waited for, and then nothing is left to do."""
    order: list[int] = []
    fill = answers.Making._fill

    def watched(self: Any, view: int, ticker: Any) -> None:
        order.append(view)
        fill(self, view, ticker)

    train(small, "kd", tmp_path)
    (folder,) = (tmp_path / "answers").iterdir()
    for file in folder.glob("logits.*"):
        file.unlink()
    real, busy = locked, iter([True])

    def taken(path: Path, *, wait: bool = True) -> Any:
        if path.name == "view-0.lock" and not wait and next(busy, False):
            raise BlockingIOError
        return real(path, wait=wait)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(answers, "locked", taken)
        patched.setattr(answers.Making, "_fill", watched)
        assert train(small, "kd", tmp_path).made == VIEWS * IMAGES
    assert order == [1, 0]


def test_each_process_begins_with_a_view_of_its_own(small: SmallRuns) -> None:
    order: list[int] = []

    class Making(answers.Making):
        def _fill(self, view: int, ticker: Any) -> None:
            order.append(view)

        def _lacking(self, view: int) -> Tensor:
            return torch.arange(1)

    batches: Any = type("", (), {"shard": (1, 3)})
    making = Making({}, {}, batches, None, None, small.place / "locks")  # type: ignore[arg-type]
    making.make(6, "", shown=False)
    assert order == [2, 3, 4, 5, 0, 1]


def test_to_delete_the_answers_is_safe(small: SmallRuns, tmp_path: Path) -> None:
    first = train(small, "kd", tmp_path)
    shutil.rmtree(tmp_path / "answers")
    again = train(small, "kd", tmp_path)
    assert again.made == first.made
    assert is_equal(first, again)


def test_a_stopped_training_goes_on_bit_by_bit(small: SmallRuns) -> None:
    """Also if the answers were deleted meanwhile."""
    params = small.params(train=QUICK | {"steps": 9})
    small.pretrain("kd", params)
    run = params.run("kd")
    common = small._common() | {"teacher": small.place / "big", "initial": small.place / "initial" / "kd"}

    def stop(name: str, curves: Any) -> None:
        if len(curves["epoch"]) == 2:
            raise Stop

    out = small.place / "students"
    distill(run, **common, out=out / "straight")
    with pytest.raises(Stop), pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.training.state.State.is_due", lambda self: True)
        distill(run, **common | {"on_point": stop}, out=out / "resumed")
    shutil.rmtree(small.place / "work" / "answers")
    result = distill(run, **common, out=out / "resumed")
    assert result.details["answers"]["distill/seed-0"]["made"] == VIEWS * IMAGES
    straight, resumed = (
        checkpoint.load_network_weights(out / name / "seed-0") for name in ("straight", "resumed")
    )
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
