"""A teacher that cannot teach stops the graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SmallRuns

from pipeline.functional import lowest_rate
from pipeline.runs.run import TeacherRun
from pipeline.runs.teacher import check_accuracy
from pipeline.settings import InputError

SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.3, "test": 0.1},
    "protocol": {},
    "train": {"epochs": 1},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 2, "lr": 1e-9, "batch_size": 16}}},
    "runs": {"alone": {"teacher": "big", "student": "small", "method": {"name": "ce"}, "seeds": [0]}},
    "analysis": {},
}


def test_the_interval_is_wilsons() -> None:
    """Values of the formula for 8 of 10, 0 of 10 and 10 of 10, as in tables."""
    assert lowest_rate(0.8, 10) == pytest.approx(0.4902, abs=1e-4)
    assert lowest_rate(0.0, 10) == pytest.approx(0, abs=1e-12)
    assert lowest_rate(1.0, 10) == pytest.approx(0.7225, abs=1e-4)
    assert lowest_rate(0.5, 10**6) == pytest.approx(0.5 - 1.96 * 0.0005, abs=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    return SmallRuns(tmp_path_factory.mktemp("teacher"), SETTINGS, images=90)


def teachers(**settings: Any) -> dict[str, Any]:
    big = SETTINGS["teachers"]["big"]
    return {"big": big | settings | {"train": big["train"] | settings.get("train", {})}}


def test_a_useless_teacher_is_refused_and_taken_without_another_training_if_wanted(
    runs: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = runs.place / "big"
    with pytest.raises(InputError, match=r"teachers\.big: .*hardly better than a guess \(33\.\d%\).*sheet"):
        runs.train_teacher("big")
    assert not out.exists()
    runs.settings["teachers"] = teachers(min_accuracy=0.99)
    with pytest.raises(InputError, match=r"below min_accuracy \(99\.0%\)"):
        runs.train_teacher("big")
    assert not out.exists()
    runs.settings["teachers"] = teachers(min_accuracy=0.0)
    monkeypatch.setattr("pipeline.training.loop.step_of", lambda *_: pytest.fail("it was trained again"))
    runs.train_teacher("big")
    assert (out / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("counts", "right", "is_refused"),
    [
        ((50, 50), 55, True),  # it may be a guess
        ((50, 50), 70, False),
        ((90, 10), 92, True),  # nearly what a guess reaches
        ((90, 10), 99, False),
        ((2, 1), 3, False),  # nothing can be known of three images
        ((4, 4), 4, True),
        ((20,), 20, False),
    ],
)
def test_a_teacher_must_surely_be_better_than_the_most_frequent_class(
    counts: tuple[int, ...], right: int, is_refused: bool, runs: SmallRuns
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    run = runs.params(teachers=teachers()).teacher_run("big")
    scores = {"val_accuracy": right / len(labels), "val_balanced_accuracy": 0.0}
    assert refused(run, scores, labels) == is_refused


@pytest.mark.parametrize("select", ["balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize(("accuracy", "balanced", "is_refused"), [(0.9, 0.5, True), (0.7, 0.7, False)])
def test_of_unbalanced_classes_the_balanced_accuracy_counts_if_it_was_selected(
    select: str, accuracy: float, balanced: float, is_refused: bool, runs: SmallRuns
) -> None:
    labels = np.repeat([0, 1], [90, 10])
    run = runs.params(teachers=teachers(train={"select": select})).teacher_run("big")
    scores = {"val_accuracy": accuracy, "val_balanced_accuracy": balanced}
    assert refused(run, scores, labels) == is_refused


def test_a_wanted_accuracy_is_named_as_such_whatever_was_selected(runs: SmallRuns) -> None:
    wanted = teachers(min_accuracy=0.99, train={"select": "balanced_accuracy"})
    run = runs.params(teachers=wanted).teacher_run("big")
    with pytest.raises(InputError, match=r"its accuracy on validation is 90\.0%, below min_accuracy"):
        check_accuracy(
            run, {"val_accuracy": 0.9, "val_balanced_accuracy": 0.5}, np.arange(10), sheet=Path("s.png")
        )


def refused(run: TeacherRun, scores: dict[str, float], labels: np.ndarray) -> bool:
    try:
        check_accuracy(run, scores, labels, sheet=Path("sheet.png"))
    except InputError:
        return True
    return False


def test_an_accuracy_that_is_none_is_refused(runs: SmallRuns) -> None:
    with pytest.raises(InputError, match=r"teachers\.big\.min_accuracy"):
        runs.params(teachers=teachers(min_accuracy=90))
