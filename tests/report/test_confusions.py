"""Confusions of few and of very many classes, from older records and from predictions."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import NAMES, as_written_now, crowd, fabricate, save_predictions

from pipeline.evaluation import predictions
from pipeline.evaluation.predictions import AllPredictions, Predictions
from pipeline.evaluation.scores import score
from pipeline.records.record import recording
from pipeline.records.results import load_results
from pipeline.report.confusions import confusion, frequent_errors, pairs
from pipeline.report.write_report import write_report
from pipeline.settings import InputError

CLASSES, IMAGES = 1000, 4000


def written(records: Path, out: Path, **names: Any) -> dict[str, str]:
    """All that stage `report` writes."""
    places: dict[str, Any] = {
        "bundles": Path("models/export"),
        "data": Path("data/prepared"),
        "views": Path("no.png"),
    }
    write_report(records, out / "reports", out / "plots", out / "gain.json", **(names or NAMES), **places)
    return {str(file.relative_to(out)): file.read_text() for file in out.rglob("*") if file.is_file()}


def test_older_records_give_the_same_report_and_plots(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records")
    save_predictions(records)
    before = written(records, tmp_path / "out")
    as_written_now(records)
    assert "confusion" not in (records / "evaluate/kd.json").read_text()
    assert written(records, tmp_path / "out") == before


def test_a_record_without_its_predictions_says_how_to_get_them(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records")
    as_written_now(records)
    (records / "evaluate/kd.npz").unlink()
    with pytest.raises(InputError, match=r"of kd are not there. Run `dvc repro -f -s evaluate@kd`"):
        written(records, tmp_path / "out")


def test_the_classes_in_most_mistakes_are_shown(tmp_path: Path) -> None:
    """Of the best student, three images are wrong: cats, which it takes for dogs."""
    records = fabricate(tmp_path / "records", right={"alone": (70,), "kd": (80,), "fitnet": (97,)})
    as_written_now(records)
    run = load_results(records, **NAMES).runs["fitnet"]
    answered = predictions.load_predictions(records / "evaluate/fitnet.npz")
    found = confusion(run, answered, 2)
    assert found.names == ["cat", "dog"]
    assert found.images.tolist() == [[22, 3], [0, 25]]
    assert found.shares.tolist() == [[0.88, 0.12], [0.0, 1.0]]
    assert [pair[:3] for pair in pairs(found)] == [
        ("cat", "cat", 22),
        ("cat", "dog", 3),
        ("dog", "cat", 0),
        ("dog", "dog", 25),
    ]
    assert confusion(run, answered, 30).names == ["cat", "dog", "eel", "fox"]
    assert frequent_errors(run, 9) == [("cat", "dog", 3, 0.12)]


def test_a_class_that_others_are_taken_for_is_shown_and_shares_are_of_all_its_images(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records", right={"alone": (70,), "kd": (80,), "fitnet": (97,)})
    as_written_now(records)
    answered = [(0, 0)] * 4 + [(0, 3)] * 5 + [(0, 1)] + [(1, 1)] * 6 + [(1, 2)] * 2 + [(2, 2)] * 3
    labels, predicted = np.array(answered).T
    student = Predictions(predicted, np.ones(len(labels)))
    everything = AllPredictions(np.arange(len(labels)), labels, student, {0: student})
    found = confusion(load_results(records, **NAMES).runs["fitnet"], everything, 2)
    assert found.names == ["cat", "fox"]
    assert found.images.tolist() == [[4, 5], [0, 0]]
    assert found.shares.tolist() == [[0.4, 0.5], [0.0, 0.0]]


def evaluated(records: Path, name: str) -> None:
    """The record and predictions of three equal students of a thousand classes, as stages write them."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(CLASSES), IMAGES // CLASSES)
    record = records / "evaluate" / f"{name}.json"
    classes = json.loads(record.read_text())["details"]["classes"]
    logits = rng.normal(size=(IMAGES, CLASSES)).astype(np.float32)
    logits[np.arange(IMAGES), labels] += 9
    logits[labels == 7, 8] += 20
    logits[labels == 500, 7] += 20
    scores, answered = asdict(score(logits, labels, CLASSES, logits)), Predictions.of(logits)
    with recording(record, "evaluate", name, {}) as done:
        done.metrics |= {"accuracy": scores["accuracy"], "n": 3, "spread": 0, "ece": 0.1, "agreement": 0.5}
        done.details |= {"classes": classes, "teacher": scores, "exported_seed": 0}
        done.details["seeds"] = dict.fromkeys("012", scores)
    everything = AllPredictions(np.arange(IMAGES), labels, answered, dict.fromkeys(range(3), answered))
    predictions.save_predictions(record.with_suffix(".npz"), everything)


def test_a_thousand_classes_need_no_megabytes(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records")
    names = crowd(records, runs=2, classes=CLASSES)
    for name in names:
        evaluated(records, name)
    sizes = {file.suffix: file.stat().st_size for file in (records / "evaluate").glob(f"{names[0]}*")}
    assert sizes[".json"] < 250_000  # mostly names, and four times the accuracy of each class
    assert sizes[".npz"] < 400_000
    texts = written(records, tmp_path / "out", runs=names, teachers=["big"])
    (name,) = (name for name in texts if name.endswith(f"{names[0]}.csv"))
    rows = list(csv.DictReader(texts[name].splitlines()))
    assert len(rows) == 30 * 30
    assert len(texts[name]) < 100_000
    shown = [row["actual"] for row in rows[::30]]
    assert [name.rpartition(" ")[2] for name in shown if name.endswith((" 7", " 8", " 500"))] == [
        "7",
        "8",
        "500",
    ]
    assert len(texts["reports/report.html"]) < 3_000_000
    assert len(texts["reports/report.md"]) < 250_000
