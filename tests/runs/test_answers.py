"""A teacher's answers to fixed views: stored once, read by all runs, and as good as the teacher itself."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from answered import AUGMENT, IMAGES, MAPS, VIEWS, assert_close, content, is_equal, run_of, small_run, train
from small_runs import SmallRuns
from torch import nn
from world import snapshot

from pipeline import methods
from pipeline.runs import answers, parts_read
from pipeline.runs.context import Context
from pipeline.runs.student import build_student
from pipeline.settings import InputError

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


def test_a_function_that_is_not_frozen_is_an_error_of_ours(small: SmallRuns, tmp_path: Path) -> None:
    def trains_its_dictionary(self: Any, student: Any) -> list[Any]:
        dictionary, match, last = phases(self, student)
        return [dictionary, replace(match, trains=(*match.trains, self.dictionary)), last]

    kind = methods.load("srm")
    phases = kind.phases
    with pytest.MonkeyPatch.context() as patched, pytest.raises(AssertionError, match="codes stage1"):
        patched.setattr(kind, "phases", trains_its_dictionary)
        train(small, "srm", tmp_path)


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
