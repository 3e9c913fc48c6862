"""Students that also see images without labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SmallRuns
from world import save_pictures

from pipeline import checkpoint
from pipeline.data.batches import Batches
from pipeline.runs.context import Context

QUICK: dict[str, Any] = {"epochs": 0, "steps": 12, "batch_size": 8, "lr": 0.01}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {"shots": 4},
    "train": QUICK,
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": QUICK}},
    "runs": {
        name: {
            "teacher": "big",
            "student": "small",
            "seeds": [0],
            "method": method,
            "protocol": {"rest": rest},
        }
        for name, method, rest in (
            ("ce", {"name": "ce"}, "unused"),
            ("ce_rest", {"name": "ce"}, "unlabelled"),
            ("kd", {"name": "kd"}, "unused"),
            ("kd_rest", {"name": "kd"}, "unlabelled"),
            ("refilled_rest", {"name": "refilled", "term_weight": 1.0}, "unlabelled"),
            ("srm_rest", {"name": "srm"}, "unlabelled"),
        )
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    runs = SmallRuns(tmp_path_factory.mktemp("unlabelled"), SETTINGS, images=45)
    runs.train_teacher("big")
    return runs


def seen(monkeypatch: pytest.MonkeyPatch) -> dict[Batches, set[int]]:
    """For each Batches that is used from here on: the rows of the store that it shows."""
    shown: dict[Batches, set[int]] = {}
    epoch = Batches.epoch

    def watched(self: Batches, n: int, first: int = 0) -> Any:
        for batch in epoch(self, n, first):
            shown.setdefault(self, set()).update(self.views.rows[batch.index].tolist())
            yield batch

    monkeypatch.setattr(Batches, "epoch", watched)
    return shown


def student(runs: SmallRuns, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_network_weights(runs.place / "students" / name / "seed-0")


def train(runs: SmallRuns, name: str) -> None:
    runs.pretrain(name)
    runs.distill(name)


def test_a_student_of_kd_learns_from_the_rest(runs: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = seen(monkeypatch)
    train(runs, "kd")
    train(runs, "kd_rest")
    few, all_of_them = (len(rows) for rows in shown.values())
    assert (few, all_of_them) == (12, 27)
    assert not torch.equal(student(runs, "kd")["fc.weight"], student(runs, "kd_rest")["fc.weight"])


def test_the_baseline_has_nothing_to_learn_from_the_rest(runs: SmallRuns) -> None:
    train(runs, "ce")
    train(runs, "ce_rest")
    one, other = student(runs, "ce"), student(runs, "ce_rest")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_each_phase_sees_what_it_can_learn_from(runs: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = seen(monkeypatch)
    train(runs, "refilled_rest")  # embed reads labels, and so does the term of distill
    assert [len(rows) for rows in shown.values()] == [12, 12]
    shown.clear()
    train(runs, "srm_rest")  # dictionary and match read none, and KD reads none
    assert [len(rows) for rows in shown.values()] == [27, 27, 27]


def test_a_folder_of_unlabelled_images_is_seen_too(tmp_path: Path) -> None:
    place = tmp_path / "images" / "unlabelled"
    save_pictures(tmp_path / "others", 10)
    place.mkdir(parents=True)
    for n, file in enumerate(sorted(tmp_path.glob("others/*/*.png"))):
        file.rename(place / f"{n}.png")
    runs = SmallRuns(tmp_path, SETTINGS, images=45)
    run = runs.params().run("kd")
    subset = Context.of_students(runs.data, run.protocol, run.augment).subset
    assert len(subset.rows) == 12
    assert len(subset.unlabelled) == 10
    run = runs.params().run("kd_rest")
    subset = Context.of_students(runs.data, run.protocol, run.augment).subset
    assert len(subset.unlabelled) == 10 + 15


def test_the_record_tells_how_many(runs: SmallRuns) -> None:
    """The baseline does not see them."""
    for name, unlabelled in (("kd_rest", 15), ("ce_rest", 0)):
        runs.pretrain(name)
        subset = runs.distill(name).details["subset"]
        assert (subset["images"], subset["unlabelled"]) == (12, unlabelled)


def test_no_student_learns_from_validation_or_test(runs: SmallRuns) -> None:
    run = runs.params().run("kd_rest")
    context = Context.of_students(runs.data, run.protocol, run.augment)
    train_rows = set(context.store.indices("train").tolist())
    assert set(context.subset.rows) | set(context.subset.unlabelled) == train_rows


def test_with_a_share_of_zero_they_are_not_seen(runs: SmallRuns, tmp_path: Path) -> None:
    train(runs, "kd")
    usual = student(runs, "kd")
    params = runs.params(train=QUICK | {"unlabelled_share": 0.0})
    runs.pretrain("kd_rest", params)
    runs.distill("kd_rest", params)
    assert all(torch.equal(usual[name], value) for name, value in student(runs, "kd_rest").items())
