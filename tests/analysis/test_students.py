"""A run looked into as a whole; through DVC in test_repro.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from world import save_pictures

from pipeline import checkpoint, config, saved
from pipeline.analysis.probe import embeddings, linear_probe
from pipeline.analysis.students import Subject, _one_of_each, analyse
from pipeline.data.prepare import prepare
from pipeline.inputs import InputError
from pipeline.record import Record
from pipeline.runs import Lab, distill, learn, pretrain, train_teacher

RUN = {"teacher": "big", "student": "small", "seeds": [0, 1]}
PARAMS: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "folder", "size": 8, "val": 0.3, "test": 0.2},
    "augment": {},
    "protocol": {"shots": 5},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 3, "batch_size": 8, "lr": 0.01}}},
    "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm"}, "phases": {"dictionary": {"epochs": 2}}}},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {
        "kd": RUN | {"method": {"name": "kd"}},
        "srm": RUN | {"teacher": "atoms", "method": {"name": "srm"}},
        "semckd": RUN | {"method": {"name": "semckd", "term_weight": 1.0}},
        "mixed": RUN | {"seeds": [0], "method": {"name": "at", "combine": {"name": "srm"}}},
    },
    "analysis": {
        "kd": {"transfer": {"source": "folder", "val": 0.3}},
        "srm": {"images": 0},
        "semckd": {"images": 2},
        "mixed": {"images": 0},
    },
    "export": {},
    "benchmark": {},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("analysis")
    save_pictures(place / "images", 60)
    save_pictures(place / "others", 48, size=10, classes=2)
    params = given(place)
    (place / "data").mkdir()
    prepare(params.data, place / "data")
    train_teacher(params, "big", Record("teacher", "big", {}), data=place / "data", out=place / "big", work=place / "work")
    learn(
        params,
        "atoms",
        Record("knowledge", "atoms", {}),
        data=place / "data",
        teacher=place / "big",
        out=place / "atoms",
        work=place / "work",
    )
    return place


def given(place: Path) -> config.Params:
    told = json.loads(json.dumps(PARAMS))
    told["data"]["root"] = str(place / "images")
    told["analysis"]["kd"]["transfer"]["root"] = str(place / "others")
    (place / "params.yaml").write_text(yaml.safe_dump(told))
    return config.load(place / "params.yaml")


def looked_into(place: Path, run: str) -> Record:
    params = given(place)
    teacher = place / params.run(run).teacher
    common: dict[str, Any] = {"data": place / "data", "teacher": teacher, "work": place / "work"}
    pretrain(params, run, Record("pretrain", run, {}), out=place / "initial" / run, **common)
    past = Record("distill", run, {})
    distill(params, run, past, initial=place / "initial" / run, out=place / "students" / run, **common)
    told = Record("analyse", run, {})
    folders = {"initial": place / "initial" / run, "students": place / "students" / run}
    analyse(params, run, told, data=place / "data", teacher=teacher, **folders, distilled=past, out=place / "pictures" / run)
    json.dumps(vars(told), allow_nan=False)
    assert {file.name for file in (place / "pictures" / run).iterdir()} == set(told.details["pictures"])
    return told


def test_probes_stand_beside_the_whole_network_and_others_images(place: Path) -> None:
    told = looked_into(place, "kd")
    assert set(told.details["pictures"]) == {"stages.png", "grad_cam.png"}
    whole = {seed: saved.load(place / f"students/kd/seed-{seed}")[1]["val_accuracy"] for seed in (0, 1)}
    assert told.details["probe"]["whole_network"] == whole
    assert told.metrics["whole_network"] == pytest.approx(np.mean(list(whole.values())))
    assert told.metrics["whole_network_spread"] == pytest.approx(np.std(list(whole.values()), ddof=1))
    for name in ("probe_before", "probe_after"):
        assert told.metrics[name] == pytest.approx(np.mean(list(told.details["probe"][name].values())))
        assert 0 < told.metrics[name] <= 1
    assert "sm_score" not in told.metrics  # kd associates no stages
    assert told.details["transfer"]["splits"]["train"] > 0
    for name in ("before", "after", "teacher"):
        assert 0.5 <= told.metrics[f"transfer_{name}"] <= 1
    with Image.open(place / "pictures/kd/grad_cam.png") as picture:
        assert picture.height > picture.width  # six images under one another, and teacher and two students beside each


def test_a_student_that_is_the_teacher_is_like_it(place: Path) -> None:
    params = given(place)
    for folder in ("same", "initial same"):
        weights, facts = checkpoint.load_net(place / "big")
        checkpoint.save_net(place / folder / "seed-0", weights, facts | {"val_accuracy": 0.5})
    told, past = Record("analyse", "kd", {}), Record("distill", "kd", {}, details={"overview": [["stage1", "", "", "stage1"]]})
    folders = {"initial": place / "initial same", "students": place / "same"}
    analyse(params, "kd", told, data=place / "data", teacher=place / "big", **folders, distilled=past, out=place / "pictures/same")
    for when in ("before", "after"):
        assert np.diag(told.details["stages"][when]) == pytest.approx(1)
    assert told.metrics["cka"] == pytest.approx(1)
    assert "sm_score" not in told.metrics  # its logarithm isn't a number
    assert told.metrics["transfer_after"] == told.metrics["transfer_teacher"]
    assert told.details["probe"]["probe_before"] == told.details["probe"]["probe_after"]


def test_dictionaries_are_looked_into_and_dead_ones_named(place: Path) -> None:
    told = looked_into(place, "srm")
    assert set(told.details["pictures"]) == {"stages.png", "dictionaries.png"}
    stages = told.details["dictionaries"][0]
    assert stages == told.details["dictionaries"][1]  # they are the teacher's
    for stage, found in stages.items():
        assert told.metrics[f"atoms_used/{stage}"] == pytest.approx(found["used"] / found["atoms"])
        assert told.metrics[f"dictionary_error/{stage}"] == pytest.approx(found["error"])
        dead = found["used"] < found["atoms"] / 2 or found["error"] > 0.9
        assert any(f"dictionary of {stage} is dead in 2 of 2 seeds" in warning for warning in told.details["warnings"]) == dead
    assert told.details["warnings"]  # two epochs are too few
    assert told.metrics["sm_score"] != 0


def test_learned_associations_are_drawn_and_weigh_the_score(place: Path) -> None:
    told = looked_into(place, "semckd")
    assert set(told.details["pictures"]) == {"stages.png", "grad_cam.png", "associations.png"}
    weights = {(s, t): weight for s, t, weight in told.details["associations"]}
    students = {s for s, _ in weights}
    assert sum(weights.values()) == pytest.approx(len(students))
    stages = told.details["stages"]
    alike = [w * stages["after"][stages["student"].index(s)][stages["teacher"].index(t)] for (s, t), w in weights.items()]
    assert told.metrics["cka"] == pytest.approx(sum(alike) / len(students))


def test_dictionaries_of_a_partner_are_found(place: Path) -> None:
    assert "dictionaries.png" in looked_into(place, "mixed").details["pictures"]


def test_one_image_a_class_is_taken_in_turn() -> None:
    labels = np.array([2, 0, 0, 1, 2, 1, 4])
    assert labels[_one_of_each(labels, 6)].tolist() == [0, 1, 2, 4, 0, 1]
    assert _one_of_each(labels, 2).tolist() == [1, 6]  # of the first and the last class
    assert len(_one_of_each(labels, 40)) == 7


def test_too_few_images_are_refused(place: Path) -> None:
    params = given(place)
    lab = Lab(params, place / "data", params.run_protocol("kd"))
    teacher = lab.teacher(place / "big")
    lab.validation = type(lab.validation)(lab.validation.rows[:3], lab.validation.labels[:3], lab.validation.classes)
    with pytest.raises(InputError, match=r"analysis\.kd: 3 validation images are too few"):
        next(Subject("kd", lab, teacher, {}, {}, 0).views(teacher))


def test_before_and_after_are_not_mixed_up(place: Path) -> None:
    """Before it was the teacher itself, afterwards a network of zeros."""
    params = given(place)
    weights, facts = checkpoint.load_net(place / "big")
    facts |= {"val_accuracy": 0.25}
    checkpoint.save_net(place / "knew/seed-3", weights, facts)
    checkpoint.save_net(place / "forgot/seed-3", {name: torch.zeros_like(tensor) for name, tensor in weights.items()}, facts)
    told, past = Record("analyse", "kd", {}), Record("distill", "kd", {}, details={"overview": []})
    folders = {"initial": place / "knew", "students": place / "forgot"}
    analyse(params, "kd", told, data=place / "data", teacher=place / "big", **folders, distilled=past, out=place / "pictures/forgot")
    assert np.diag(told.details["stages"]["before"]) == pytest.approx(1)
    assert np.array(told.details["stages"]["after"]) == pytest.approx(0)
    assert told.metrics["probe_before"] > told.metrics["probe_after"] == pytest.approx(1 / 3, abs=0.15)
    assert told.metrics["transfer_before"] == told.metrics["transfer_teacher"] > told.metrics["transfer_after"]
    lab = Lab(params, place / "data", params.run_protocol("kd"))
    teacher, store = lab.teacher(place / "big"), lab.store
    learnt, held = (
        (embeddings(teacher, store.images, of.rows, mean=store.mean, std=store.std), of.labels) for of in (lab.sample, lab.validation)
    )
    assert told.metrics["probe_before"] == linear_probe(*learnt, *held, *held).accuracy
    assert told.metrics["whole_network"] == 0.25
    assert "whole_network_spread" not in told.metrics  # one seed
