import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import NAMES, edit, fabricate, learn, unbalance

from pipeline.records.results import RUN_STAGES, load_results
from pipeline.settings import InputError


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def test_the_best_run_is_best_on_validation_not_on_test(records: Path) -> None:
    assert load_results(records, **NAMES).best.name == "fitnet"


@pytest.mark.parametrize(("field", "value"), [("protocol", {"shots": 10}), ("student", {"net": "resnet20"})])
def test_a_baseline_has_the_same_student_and_data(records: Path, field: str, value: Any) -> None:
    path = records / "distill" / "kd.json"
    edit(path, params=json.loads(path.read_text())["params"] | {field: value})
    runs = load_results(records, **NAMES).runs
    assert {name: run.baseline for name, run in runs.items()} == {
        "alone": None,
        "kd": None,
        "fitnet": "alone",
    }


def test_of_two_baselines_the_better_on_validation_counts(records: Path) -> None:
    for stage in RUN_STAGES:
        twin = json.loads((records / stage / "alone.json").read_text()) | {"name": "longer"}
        if stage == "distill":
            twin["metrics"]["val_accuracy"] = 0.75
        (records / stage / "longer.json").write_text(json.dumps(twin))
    results = load_results(records, runs=["alone", "longer", "kd"], teachers=["big"])
    assert [run.baseline for run in results.runs.values()] == [None, None, "longer"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.unlink(),
            r"evaluate/kd.json: there is no record of stage evaluate@kd. Run `dvc repro evaluate@kd`",
        ),
        (lambda path: path.write_text("{"), r"not a record of stage evaluate@kd.*-s evaluate@kd`"),
        (lambda path: path.write_bytes(b"\xff"), r"not a record of stage evaluate@kd.*-s evaluate@kd`"),
        (
            lambda path: path.write_text('{"stage": "evaluate"}'),
            r"not a record of stage evaluate@kd.*-s evaluate@kd`",
        ),
        (
            lambda path: edit(path, schema=9),
            r"schema 9, but schema 3 is needed.*`dvc repro -f -s evaluate@kd`",
        ),
        (
            lambda path: edit(path, schema=1),
            r"schema 1, but schema 3 is needed.*`dvc repro -f -s evaluate@kd`",
        ),
        (
            lambda path: edit(path, name="fitnet"),
            r"record of evaluate@fitnet, not of evaluate@kd.*`dvc repro -f -s evaluate@kd`",
        ),
        (
            lambda path: edit(path, stage="export"),
            r"record of export@kd, not of evaluate@kd.*`dvc repro -f -s evaluate@kd`",
        ),
    ],
)
def test_an_unusable_record_is_refused_with_the_command_to_run(
    records: Path, damage: Any, message: str
) -> None:
    damage(records / "evaluate" / "kd.json")
    with pytest.raises(InputError, match=message):
        load_results(records, **NAMES)


def test_knowledge_of_two_runs_is_loaded_once(records: Path) -> None:
    learn(records, "atoms", "kd", "fitnet")
    results = load_results(records, **NAMES)
    assert {name: run.knowledge for name, run in results.runs.items()} == {
        "alone": None,
        "kd": "atoms",
        "fitnet": "atoms",
    }
    assert [record.name for record in results.records if record.stage == "knowledge"] == ["atoms"]


def test_knowledge_without_a_record_is_refused(records: Path) -> None:
    learn(records, "atoms", "kd")
    (records / "knowledge" / "atoms.json").unlink()
    with pytest.raises(
        InputError, match=r"there is no record of stage knowledge@atoms. Run `dvc repro knowledge@atoms`"
    ):
        load_results(records, **NAMES)


def choose_by(records: Path, select: str, **scores: tuple[float, float, float]) -> None:
    """Let the runs have these balanced accuracies, macro-F1 and losses, and choose by `select`."""
    for name, values in scores.items():
        path = records / "distill" / f"{name}.json"
        record = json.loads(path.read_text())
        names = ("val_balanced_accuracy", "val_macro_f1", "val_loss")
        metrics = record["metrics"] | dict(zip(names, values, strict=True))
        edit(path, metrics=metrics, details=record["details"] | {"select": select})


SCORES = {"alone": (0.6, 0.5, 0.1), "kd": (0.7, 0.3, 0.9), "fitnet": (0.5, 0.4, 0.5)}


@pytest.mark.parametrize(
    ("select", "order"),
    [
        ("accuracy", ["fitnet", "kd", "alone"]),
        ("balanced_accuracy", ["kd", "alone", "fitnet"]),
        ("macro_f1", ["alone", "fitnet", "kd"]),
        ("loss", ["alone", "fitnet", "kd"]),
    ],
)
def test_the_best_run_is_best_by_what_the_students_were_selected_by(
    records: Path, select: str, order: list[str]
) -> None:
    choose_by(records, select, **SCORES)
    results = load_results(records, **NAMES)
    assert [run.name for run in results.ranked] == order
    assert results.select == select


def test_runs_that_select_by_different_scores_are_compared_by_accuracy(records: Path) -> None:
    choose_by(records, "macro_f1", **{name: SCORES[name] for name in ("alone", "kd")})
    results = load_results(records, **NAMES)
    assert (results.select, results.best.name) == ("accuracy", "fitnet")


@pytest.mark.parametrize(
    ("counts", "unbalanced"), [((10, 20, 15, 10), False), ((10, 21, 15, 10), True), ((25, 1, 25, 25), True)]
)
def test_a_test_split_is_unbalanced_if_a_class_is_over_twice_another(
    records: Path, counts: tuple[int, ...], unbalanced: bool
) -> None:
    unbalance(records, *counts)
    assert load_results(records, **NAMES).is_unbalanced == unbalanced
