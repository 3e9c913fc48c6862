"""Teacher and student learn different classes, from the protocol to the evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from world import save_pictures

from pipeline import checkpoint, config
from pipeline.cross_task import translated
from pipeline.data.prepare import prepare
from pipeline.record import Record
from pipeline.runs import distill, pretrain, train_teacher
from stages import evaluate

RUN = {"teacher": "big", "student": "small", "seeds": [0, 1]}
PARAMS: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "augment": {},
    "protocol": {"class_overlap": 0.5, "label_noise": 0.2},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 1, "batch_size": 8}}},
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {
        "refilled": RUN | {"method": {"name": "refilled"}},
        "kd": RUN | {"method": {"name": "kd"}},
        "kdgan": RUN | {"method": {"name": "kdgan", "kd_weight": 0}},
    },
    "export": {},
    "benchmark": {},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cross task")
    save_pictures(place / "images", 60, classes=4)
    (place / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"data": PARAMS["data"] | {"root": str(place / "images")}}))
    params = config.load(place / "params.yaml")
    (place / "data").mkdir()
    prepare(params.data, place / "data")
    train_teacher(params, "big", Record("teacher", "big", {}), data=place / "data", out=place / "big", work=place / "work")
    return place


def train(place: Path, run: str) -> Record:
    params, told = config.load(place / "params.yaml"), Record("distill", run, {})
    pretrain(
        params, run, Record("pretrain", run, {}), data=place / "data", teacher=place / "big", out=place / "initial", work=place / "work"
    )
    distill(
        params, run, told, data=place / "data", teacher=place / "big", initial=place / "initial", out=place / run, work=place / "work"
    )  # fmt: skip
    return told


def test_each_learns_its_own_classes_and_both_are_scored(place: Path) -> None:
    told = train(place, "refilled")
    taught, learnt = (checkpoint.load_net(place / folder)[1]["classes"] for folder in ("big", "refilled/seed-0"))
    assert len(taught) == len(learnt) == 2
    assert len(set(taught) & set(learnt)) == 1
    assert told.details["sample"]["classes"] == learnt
    assert told.details["sample"]["flipped"] > 0

    files = [place / name for name in ("metrics.json", "said.npz", "record.json")]
    evaluate.stage("refilled", place / "data", place / "big", place / "refilled", *files)
    record = json.loads(files[2].read_text())
    assert record["details"]["classes"] == learnt
    assert record["details"]["teacher"]["classes"] == taught
    assert record["details"]["teacher"]["n"] == record["details"]["seeds"]["0"]["n"] == 6
    joint = [each["joint"] for each in record["details"]["cross_task"].values()]
    assert record["metrics"]["joint"] == pytest.approx(np.mean(joint))
    assert 0 <= record["metrics"]["harmonic_mean"] <= 1
    assert 0 <= record["metrics"]["seen_auc"] <= 1
    assert "agreement" not in record["metrics"]
    with np.load(files[1]) as said:
        seen = learnt.index(*(set(taught) & set(learnt)))
        assert set(said["teacher"]) <= {-1, seen}


@pytest.mark.parametrize("run", ["kd", "kdgan"])
def test_a_method_that_reads_the_teachers_logits_is_refused(place: Path, run: str) -> None:
    with pytest.raises(ValueError, match=f"runs.{run}.method matches the teacher's logits, but protocol.class_overlap"):
        train(place, run)


def test_runs_cannot_have_class_sets_of_their_own(place: Path) -> None:
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["runs"]["kd"]["protocol"] = {"class_overlap": 0.1}
    (place / "other.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"runs\.kd\.protocol\.class_overlap: runs share their teachers"):
        config.load(place / "other.yaml")


def test_answers_are_translated_between_numberings() -> None:
    assert translated(np.array([0, 1, 2, 1]), taught=[3, 5, 8], learnt=[5, 6, 8]).tolist() == [-1, 0, 2, 0]
