"""A teacher's answers to fixed views: stored once, read by all runs, and as good as the teacher itself."""

import errno
import gc
import math
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from small_runs import SmallRuns, silent
from torch import Tensor, nn
from world import snapshot

from pipeline import checkpoint, methods
from pipeline.files import locked, write_at
from pipeline.functional import softened_kl
from pipeline.runs import answer_file, answers, parts_read
from pipeline.runs.answer_file import AnswerFile
from pipeline.runs.answer_key import depends_on, key_of, key_of_function
from pipeline.runs.context import Context
from pipeline.runs.phase import Trainee, train_phase
from pipeline.runs.run import Run
from pipeline.runs.student import build_student, distill
from pipeline.settings import InputError
from pipeline.taps.answer import Frozen
from pipeline.taps.tapped import Tapped

FEW = {"shots": 4, "rest": "unlabelled"}
VIEWS, IMAGES = 2, 27  # of the train subset
QUICK: dict[str, Any] = {"epochs": 0, "steps": 6, "batch_size": 9, "lr": 0.01}  # six steps are two epochs
AUGMENT: dict[str, Any] = {"pad": 1, "flip": 0.5, "views": VIEWS}
MAPS = ["map stage1", "map stage2", "map stage3"]


@cache
def small_run(small: SmallRuns, name: str) -> Run:
    return small.params().run(name)


def run_of(method: dict[str, Any], teacher: str = "big", **more: Any) -> dict[str, Any]:
    return {"teacher": teacher, "student": "small", "seeds": [0], "method": method} | more


SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {},
    "augment": AUGMENT,
    "train": QUICK,
    "teachers": {
        "big": {"net": "resnet8", "train": QUICK | {"steps": 3}},
        "larger": {"net": "resnet8", "min_accuracy": 0, "train": QUICK | {"steps": 3}, "input": {"size": 12}},
    },
    "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm"}}},
    "runs": {name: run_of({"name": name}) for name in methods.names()}
    | {"with_atoms": run_of({"name": "srm"}, "atoms"), "kd_of_larger": run_of({"name": "kd"}, "larger")}
    | {f"{name}_of_few": run_of({"name": name}, protocol=FEW) for name in ("kd", "refilled")},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    small = SmallRuns(tmp_path_factory.mktemp("answers"), SETTINGS, images=45)
    small.train_teacher("big")
    small.train_teacher("larger")
    return small


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_file, "PRECISION", np.dtype(np.float32))


@dataclass
class Trained:
    """What a run's phases left."""

    weights: dict[str, Tensor]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by phase
    asked: int = 0  # images that the teacher answered to

    @property
    def made(self) -> int:
        return sum(facts.get("made", 0) for facts in self.facts.values())


def train(
    small: SmallRuns,
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    change: Callable[[nn.Module], None] = lambda net: None,
    training: dict[str, Any] | None = None,
    **augment: Any,
) -> Trained:
    """All phases of a run with such views; `folder` holds the answers. `change` is done to the teacher."""
    run = small_run(small, name)
    run = replace(
        run,
        augment=run.augment.model_copy(update=augment),
        train=run.train.model_copy(update=training or {}),
    )
    context = Context.of_students(small.data, run.protocol, run.augment)
    teacher, asked = context.load_network(small.place / run.teacher), 0
    change(teacher.net)

    def count(_: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal asked
        asked += len(args[0])

    student, method = build_student(context, run, seed, teacher)
    teacher.net.register_forward_pre_hook(count)
    done, states = Trained({}), folder / f"states-{name}-{seed}"
    for phase in method.phases(student):
        trained = train_phase(
            context,
            Trainee(seed, student, teacher, method),
            phase,
            run.training(phase.name),
            validate=None,
            folder=states,
            stage=folder / "stage",
            curve="",
            label=name,
            on_point=silent,
        )
        done.facts[phase.name] = trained.teacher
    shutil.rmtree(states, ignore_errors=True)
    return replace(done, weights=snapshot(student.net, method), asked=asked)


def assert_close(one: Trained, other: Trained, tolerance: float) -> None:
    for key, value in one.weights.items():
        torch.testing.assert_close(other.weights[key], value, rtol=tolerance, atol=tolerance)


def is_equal(one: Trained, other: Trained) -> bool:
    return all(torch.equal(other.weights[key], value) for key, value in one.weights.items())


def content(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for pattern in ("*.answers", "*.there") for file in folder.rglob(pattern)
    }


READ: dict[str, dict[str, list[str] | str]] = {
    "ce": {"distill": []},
    "kd": {"distill": ["logits"]},
    "at": {"distill": MAPS},
    "crd": {"distill": ["pooled"]},
    "irg": {"distill": ["logits", *MAPS, "pooled"]},
    "fitnet": {"hint": ["map stage2"], "distill": ["logits"]},
    "ofd": {"distill": [f"preactivation {name[4:]}" for name in MAPS]},
    "refilled": {"embed": ["pooled"], "distill": ["pooled"]},
    "jacobian": {"distill": "this phase differentiates through it"},
    "knowledge_representing": {
        "aggregate": "this phase runs more of it than its answer needs",
        "distill": ["logits"],
    },
}


def without_a_trace(*args: Any, **kwargs: Any) -> parts_read.PartsRead:
    """What is read, found by a trial after which nothing has changed."""
    student, method = kwargs["student"].net, kwargs["method"]

    def plain() -> list[dict[str, str]]:
        return [
            {key: str(value) for key, value in vars(module).items() if isinstance(value, int | float | list)}
            for module in method.modules()
        ]

    before, flags = snapshot(student, method), plain()
    read = parts_read.parts_read(*args, **kwargs)
    after = snapshot(student, method)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
    assert flags == plain()
    return read


@pytest.mark.parametrize(
    "name", [name if name in READ else pytest.param(name, marks=pytest.mark.slow) for name in methods.names()]
)
def test_each_method_learns_the_same_from_stored_answers(
    name: str, small: SmallRuns, tmp_path: Path, in_float32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "parts_read", without_a_trace)
    live = train(small, name, tmp_path, views_gb=0.0)
    stored = train(small, name, tmp_path)
    found = {phase: facts.get("live", facts["read"]) for phase, facts in stored.facts.items()}
    assert found == READ.get(name, found)
    assert_close(live, stored, 2e-4)
    assert all("live" in facts or not facts["read"] for facts in live.facts.values())
    if all(isinstance(each, list) for each in found.values()):  # then the teacher is asked by trials alone
        assert stored.asked == stored.made + 9 * sum(bool(each) for each in found.values())


@pytest.mark.parametrize("name", ["kd", "at", "crd"])
def test_half_precision_changes_little(name: str, small: SmallRuns, tmp_path: Path) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.001}  # the steps of adamw are large however small a gradient is
    stored = train(small, name, tmp_path, training=sgd)
    live = train(small, name, tmp_path, training=sgd, views_gb=0.0)
    assert not is_equal(live, stored)
    assert_close(live, stored, 2e-3)


# --- one store for all


def test_runs_seeds_and_phases_share_what_is_stored(small: SmallRuns, tmp_path: Path) -> None:
    """The teacher answers once to each view, and to nine images of each phase's trial."""
    first = train(small, "kd", tmp_path)
    assert (first.made, first.asked) == (VIEWS * IMAGES, VIEWS * IMAGES + 9)
    for name, seed in (("kd", 1), ("eskd", 0)):
        again = train(small, name, tmp_path, seed=seed)
        assert (again.made, again.asked) == (0, 9)
    assert not is_equal(first, train(small, "kd", tmp_path, seed=1))  # the order of the images differs


def test_what_is_missing_is_added_alone(small: SmallRuns, tmp_path: Path) -> None:
    """Maps beside logits, more views beside the first ones, more images beside the few."""
    train(small, "kd", tmp_path)
    before = content(tmp_path)
    assert set(before) == {"logits.answers", "logits.there"}
    assert train(small, "irg", tmp_path).made == VIEWS * IMAGES
    assert content(tmp_path).items() >= before.items()
    assert train(small, "kd", tmp_path).made == 0
    more = train(small, "kd", tmp_path, views=3, training={"steps": 9})
    assert more.made == IMAGES
    length = len(before["logits.answers"])
    assert content(tmp_path)["logits.answers"][:length] == before["logits.answers"]


def test_views_that_a_short_phase_does_not_show_are_not_made(small: SmallRuns, tmp_path: Path) -> None:
    assert train(small, "kd", tmp_path, views=64).made == 2 * IMAGES
    assert train(small, "kd", tmp_path, views=1).made == 0


def test_a_larger_subset_asks_only_for_its_new_images(small: SmallRuns, tmp_path: Path) -> None:
    run = small_run(small, "kd")
    few, every = (replace(run, protocol=run.protocol.model_copy(update={"shots": shots})) for shots in (3, 0))
    made = []
    for each in (few, every):
        context = Context.of_students(small.data, each.protocol, each.augment)
        teacher = context.load_network(small.place / "big")
        student, method = build_student(context, each, 0, teacher)
        batches = context.batches(each.train, 0, student, teacher)
        networks: dict[str, Any] = {"student": student, "teacher": teacher, "method": method}
        phase = method.phases(student)[-1]
        _, facts = answers.stored_answers(
            context, phase, batches, each.train, **networks, folder=tmp_path, label="kd"
        )
        made.append(facts["made"])
    assert made == [2 * 9, 2 * (IMAGES - 9)]


def test_knowledge_of_a_teacher_shares_the_teachers_answers(small: SmallRuns, tmp_path: Path) -> None:
    small.learn_knowledge("atoms")
    learned = small.place / "work" / "answers"
    run = train(small, "with_atoms", small.place / "work")
    assert {phase: facts["made"] for phase, facts in run.facts.items() if facts["read"]} == {
        "dictionary": 0,
        "match": VIEWS * IMAGES,  # the codes
        "distill": VIEWS * IMAGES,
    }
    assert len(list(learned.iterdir())) == 1


def test_what_a_frozen_function_makes_is_stored_in_place_of_what_it_reads(
    small: SmallRuns, tmp_path: Path, in_float32: None
) -> None:
    """The dictionaries of srm differ from seed to seed, and so do the codes."""
    live = train(small, "srm", tmp_path, views_gb=0.0)
    first, again = (train(small, "srm", tmp_path) for _ in range(2))
    codes = ["codes stage1", "codes stage2", "codes stage3"]
    assert {phase: facts["read"] for phase, facts in first.facts.items()} == {
        "dictionary": MAPS, "match": codes, "distill": ["logits"]
    }  # fmt: skip
    assert_close(live, first, 2e-3)
    assert (first.made, again.made) == (3 * VIEWS * IMAGES, 0)
    assert is_equal(first, again)
    assert train(small, "srm", tmp_path, seed=1).facts["match"]["made"] == VIEWS * IMAGES
    sizes = {path.stat().st_size for path in (tmp_path / "answers").rglob("codes-stage1*.answers")}
    assert sizes == {VIEWS * 45 * 4 * (8 * 8 + 32)}  # of all images of the store: winners, and means by atom


def test_the_key_of_a_function_depends_on_its_weights_and_settings() -> None:
    weights = nn.Linear(2, 2)
    usual = Frozen("codes", lambda answer: answer.logits, weights, (1.0, 2.0))
    keys = {key_of_function(usual), key_of_function(replace(usual, settings=(1.0, 3.0)))}
    with torch.no_grad():
        weights.bias[0] += 1
    assert len(keys | {key_of_function(usual)}) == 3


def test_a_function_that_is_not_frozen_is_an_error_of_ours(small: SmallRuns, tmp_path: Path) -> None:
    def trains_its_dictionary(self: Any, student: Any) -> list[Any]:
        dictionary, match, last = phases(self, student)
        return [dictionary, replace(match, trains=(*match.trains, self.dictionary)), last]

    kind = methods.load("srm")
    phases = kind.phases
    with pytest.MonkeyPatch.context() as patched, pytest.raises(AssertionError, match="codes stage1"):
        patched.setattr(kind, "phases", trains_its_dictionary)
        train(small, "srm", tmp_path)


# --- never those of another teacher


def weights_changed(net: nn.Module) -> None:
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] += 1e-6


@pytest.mark.parametrize(
    "other",
    [{"change": weights_changed}, {"flip": 0.4}, {"erase": 0.1}, {"training": {"precision": "bf16"}}],
    ids=["weights", "flip", "erase", "precision"],
)
def test_other_answers_are_never_read(other: dict[str, Any], small: SmallRuns, tmp_path: Path) -> None:
    train(small, "kd", tmp_path)
    assert train(small, "kd", tmp_path, **other).made == VIEWS * IMAGES


def key(context: Context, small: SmallRuns, teacher: str = "big") -> str:
    run, net = small_run(small, "kd"), context.load_network(small.place / teacher)
    student, _ = build_student(context, run, 0, net)
    return key_of(depends_on(context, net, context.batches(run.train, 0, student, net), "fp32"))


def test_the_key_depends_on_data_code_and_input(
    small: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(small, "kd")
    context = Context.of_students(small.data, run.protocol, run.augment)
    usual = key(context, small)
    assert usual == key(context, small)
    assert usual != key(context, small, "larger")
    context.store.manifest["content"], content = "0" * 64, context.store.content
    assert usual != key(context, small)
    context.store.manifest["content"] = content
    context.augment = run.augment.model_copy(update={"seed": 1})
    assert usual != key(context, small)
    context.augment = run.augment.model_copy(update={"views": 9, "views_gb": 1.0, "preset": "strong"})
    assert usual == key(context, small)  # what these change is told by the other settings
    (tmp_path / "net.py").write_text("changed = True")
    monkeypatch.setattr("pipeline.checkpoint.inspect.getfile", lambda kind: str(tmp_path / "net.py"))
    assert usual != key(context, small)


def test_only_mixing_makes_answers_depend_on_the_subset(small: SmallRuns) -> None:
    run = small_run(small, "kd")
    keys = [
        key(
            Context.of_students(
                small.data,
                run.protocol.model_copy(update={"shots": shots}),
                run.augment.model_copy(update={"mixup": mixup}),
            ),
            small,
        )
        for mixup in (0.0, 0.5)
        for shots in (0, 3)
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


# --- stopped, at the same time, deleted


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


# --- swept


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


# --- many classes


MANY = 5000


@dataclass
class Wide:
    """A teacher of many classes, and what it answers."""

    teacher: Tapped
    images: Tensor

    @classmethod
    def of(cls, last: Callable[[Tensor], Tensor] = lambda logits: logits) -> "Wide":
        class Net(nn.Module):
            taps: ClassVar = {"stem": "stem"}
            classifier = "fc"

            def __init__(self) -> None:
                super().__init__()
                self.stem, self.fc = nn.Conv2d(3, 32, 3, 2), nn.Linear(32, MANY)

            def forward(self, images: Tensor) -> Tensor:
                return last(self.fc(self.stem(images).relu().mean((2, 3))))

        torch.manual_seed(0)
        net, images = Net().eval().requires_grad_(False), torch.randn(16, 3, 8, 8)
        net.fc.weight *= 40  # logits as far apart as those of trained networks
        return cls(Tapped(net, images), images)

    def classifier(self) -> Callable[[Tensor], Tensor] | None:
        return parts_read._classifier(self.teacher, self.teacher(self.images), nullcontext)


def test_many_logits_are_made_of_pooled_embeddings_as_the_teacher_makes_them(tmp_path: Path) -> None:
    wide = Wide.of()
    classify, answer = wide.classifier(), wide.teacher(wide.images)
    assert classify is not None
    assert torch.equal(classify(answer.pooled), answer.logits)
    file = AnswerFile(tmp_path, "pooled", (32,), rows=16, views=1)
    file.write(0, np.arange(16), answer.pooled)
    read = parts_read.PartsRead({"pooled": (32,)}, classify=classify)
    stored = answers.Stored({"pooled": file}, read, torch.arange(16), torch.device("cpu"))
    given = stored(0, torch.arange(16), lambda: pytest.fail("the teacher was asked"))
    student = torch.randn(16, MANY)
    flat = top_of(answer.logits, 500)
    for temperature, least in ((1.0, 0.0), (4.0, 0.5)):
        exact, ours, theirs = (
            softened_kl(student, each, temperature) for each in (answer.logits, given.logits, flat)
        )
        assert abs(ours / exact - 1) < 1e-4
        assert abs(theirs / exact - 1) >= least  # why the largest logits alone are not what is stored


def top_of(logits: Tensor, k: int) -> Tensor:
    """The largest logits, and one value for all others, with their mass at temperature 1."""
    top = logits.topk(k)
    rest = logits.scatter(1, top.indices, -torch.inf).logsumexp(1, keepdim=True)
    return (rest - math.log(logits.shape[1] - k)).expand_as(logits).scatter(1, top.indices, top.values)


def test_few_logits_and_those_that_are_not_linear_are_stored_whole() -> None:
    assert Wide.of(lambda logits: logits.relu()).classifier() is None
    assert Wide.of(lambda logits: logits[:, :1000]).classifier() is None
    assert Wide.of(lambda logits: logits[:, :1001]).classifier() is None


def test_the_parts_read_have_pooled_embeddings_in_place_of_many_logits(
    small: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.001}  # the steps of adamw are large however small a gradient is
    usual = train(small, "kd", tmp_path / "whole", training=sgd)
    monkeypatch.setattr(parts_read, "_is_smaller", lambda answer: True)
    done = train(small, "kd", tmp_path, training=sgd)
    assert done.facts["distill"]["read"] == ["pooled"]
    assert set(content(tmp_path / "answers")) == {"pooled.answers", "pooled.there"}
    assert done.asked == VIEWS * IMAGES + 9
    assert_close(usual, done, 2e-3)
    assert train(small, "irg", tmp_path).facts["distill"]["read"] == [*MAPS, "pooled"]


# --- exact, whatever the views are


@pytest.mark.parametrize(
    ("name", "training", "augment"),
    [
        ("kd", {}, {"mixup": 0.4}),
        ("at", {}, {"cutmix": 1.0}),
        ("kd", {"class_balance": "sampler"}, {"mixup": 0.4, "cutmix": 1.0}),
        ("kd", {"accumulate": 2}, {"mixup": 0.4, "cutmix": 1.0}),
        ("kd_of_larger", {}, {"mixup": 0.4}),
        ("kd_of_few", {}, {"mixup": 0.4, "cutmix": 1.0}),
        ("refilled_of_few", {}, {"mixup": 0.4, "cutmix": 1.0}),
    ],
)
def test_mixed_views_of_any_subset_are_exact(
    name: str,
    training: dict[str, Any],
    augment: dict[str, Any],
    small: SmallRuns,
    tmp_path: Path,
    in_float32: None,
) -> None:
    """Also with the student's images of another size, and with images without labels."""
    stored = train(small, name, tmp_path, training=training, **augment)
    live = train(small, name, tmp_path, training=training, **augment, views_gb=0.0)
    assert all("folder" in facts for facts in stored.facts.values())
    assert_close(live, stored, 1e-4)


def test_without_fixed_views_nothing_is_stored(small: SmallRuns, tmp_path: Path) -> None:
    done = train(small, "kd", tmp_path, views=0)
    assert done.facts == {"distill": {}}
    assert not (tmp_path / "answers").exists()


# --- where the teacher runs live


def test_too_little_disk_makes_the_teacher_live_and_it_is_said(
    small: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = train(small, "fitnet", tmp_path, views_gb=1e-5).facts
    why = "its answers would take more than augment.views_gb (1e-05): map stage2 5.53e-05 GB"
    assert facts["hint"]["live"] == why
    assert "live" not in facts["distill"]
    printed = capsys.readouterr().out
    assert f"fitnet: the teacher runs live: {why}\n" in printed
    assert "fitnet: the teacher's answers to 27 images in 2 views (logits) are stored, 54 of" in printed


def test_numbers_beyond_half_precision_are_not_stored(small: SmallRuns, tmp_path: Path) -> None:
    def loud(net: nn.Module) -> None:
        with torch.no_grad():
            net.get_parameter("fc.bias").add_(1e5)

    done = train(small, "kd", tmp_path, change=loud)
    assert done.facts["distill"]["live"] == "logits has numbers that half precision cannot hold"
    assert not any(any(there) for name, there in content(tmp_path).items() if name.endswith(".there"))


def test_a_part_that_the_trial_did_not_read_comes_from_the_network(
    small: SmallRuns, tmp_path: Path, in_float32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = train(small, "irg", tmp_path)
    whole = parts_read.parts_read

    def short(*args: Any, **kwargs: Any) -> parts_read.PartsRead:
        read = whole(*args, **kwargs)
        del read.shapes["pooled"]
        return read

    monkeypatch.setattr(answers, "parts_read", short)
    unforeseen = train(small, "irg", tmp_path)
    assert unforeseen.asked == 9 + 6 * 9  # once a step
    assert_close(usual, unforeseen, 1e-4)


def test_a_full_disk_is_said(small: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"No space left on device.*lower augment.views_gb"):
        train(small, "kd", tmp_path)


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"logits\.answers"):
            AnswerFile(tmp_path, "logits", (300,), rows=5, views=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- settings and records


def test_the_record_tells_what_was_read(small: SmallRuns) -> None:
    shutil.rmtree(small.place / "work" / "answers", ignore_errors=True)
    facts = small.pretrain("fitnet").details["answers"]["hint/seed-0"]
    assert facts["seconds"] > 0
    assert (facts["views"], facts["read"], facts["made"]) == (VIEWS, ["map stage2"], VIEWS * IMAGES)
    assert small.distill("fitnet").details["answers"]["distill/seed-0"]["read"] == ["logits"]
    assert small.pretrain("kd").details.keys() == {"subset", "overview"}


def test_a_teacher_sees_new_views_in_every_epoch(small: SmallRuns) -> None:
    run = small.params().teacher_run("big")
    assert run.augment.views == VIEWS
    assert Context.of_teacher(small.data, run.protocol, run.augment).augment.views == 0


def test_a_run_with_a_preset_of_its_own_keeps_the_fixed_views(small: SmallRuns) -> None:
    params = small.params(
        augment=AUGMENT | {"seed": 3, "views_gb": 2.0},
        runs={"strong": run_of({"name": "kd"}, augment={"preset": "strong"})},
    )
    augment = params.run("strong").augment
    assert (augment.views, augment.seed, augment.views_gb, augment.pad) == (VIEWS, 3, 2.0, 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"views": -1}, "augment.views"),
        ({"views": 1.5}, "augment.views"),
        ({"seed": -1}, "augment.seed"),
        ({"views_gb": -1}, "augment.views_gb"),
        ({"view": 2}, "views"),
    ],
)
def test_a_bad_value_is_refused(setting: dict[str, Any], message: str, small: SmallRuns) -> None:
    with pytest.raises(InputError, match=message):
        small.params(augment=AUGMENT | setting)
