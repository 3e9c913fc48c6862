"""The analysis of a run as a whole; through DVC in test_repro.py."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SmallRuns
from world import save_pictures

from pipeline.analysis import associations
from pipeline.analysis.analyse import BATCH, Subject, _one_of_each, analyse
from pipeline.analysis.linear_probe import cross_probe, embeddings, layer_probe
from pipeline.analysis.mismatch import mismatch
from pipeline.checkpoint import load_facts, load_network_weights, save_network
from pipeline.data.sources import DataConfig
from pipeline.records.record import Record, Result
from pipeline.runs.context import Context
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]
RUN: dict[str, Any] = {"teacher": "big", "student": "small", "seeds": [0, 1]}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.3, "test": 0.2},
    "protocol": {"shots": 5},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "teachers": {
        "big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 3, "batch_size": 8, "lr": 0.01}}
    },
    "knowledge": {
        "atoms": {"teacher": "big", "method": {"name": "srm"}, "phases": {"dictionary": {"epochs": 2}}}
    },
    "runs": {
        "kd": RUN | {"method": {"name": "kd"}},
        "srm": RUN | {"teacher": "atoms", "method": {"name": "srm"}},
        "semckd": RUN | {"method": {"name": "semckd", "term_weight": 1.0}},
        "pre": RUN | {"method": {"name": "semckd", "term_weight": 1.0, "preactivation": True}},
        "mixed": RUN | {"seeds": [0], "method": {"name": "at", "combine": {"name": "srm"}}},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    runs = SmallRuns(tmp_path_factory.mktemp("analysis"), SETTINGS, images=60)
    save_pictures(runs.place / "others", 48, size=10, classes=2)
    runs.train_teacher("big")
    runs.learn_knowledge("atoms")
    return runs


def others(runs: SmallRuns) -> DataConfig:
    return DataConfig(source="folder", root=str(runs.place / "others"), size=8, val=0.3)


def analysed(
    runs: SmallRuns,
    name: str,
    past: Record,
    *,
    initial: Path,
    students: Path,
    images: int = 6,
    transfer: bool = False,
) -> Result:
    run, out = runs.params().run(name), runs.place / "pictures" / students.name
    result = analyse(
        run,
        data=runs.data,
        teacher=runs.place / run.teacher,
        initial=initial,
        students=students,
        distilled=past,
        images=images,
        transfer=others(runs) if transfer else None,
        out=out,
    )
    json.dumps(asdict(result), allow_nan=False)  # as in a record
    assert {file.name for file in out.iterdir()} == set(result.details["pictures"])
    return result


def trained_and_analysed(runs: SmallRuns, name: str, **options: Any) -> Result:
    runs.pretrain(name)
    past = Record("distill", name, {})
    past.add(runs.distill(name))
    initial, students = runs.place / "initial" / name, runs.place / "students" / name
    return analysed(runs, name, past, initial=initial, students=students, **options)


def test_probes_are_reported_with_the_whole_network_and_other_images(runs: SmallRuns) -> None:
    result = trained_and_analysed(runs, "kd", transfer=True)
    assert set(result.details["pictures"]) == {"maps.png", "grad_cam.png"}
    students = runs.place / "students/kd"
    whole = {seed: load_facts(students / f"seed-{seed}")["val_accuracy"] for seed in (0, 1)}
    assert result.details["probe"]["whole_network"] == whole
    assert result.metrics["whole_network"] == pytest.approx(np.mean(list(whole.values())))
    assert result.metrics["whole_network_spread"] == pytest.approx(np.std(list(whole.values()), ddof=1))
    for name in ("probe_before", "probe_after", "layer_before", "layer_after"):
        assert result.metrics[name] == pytest.approx(np.mean(list(result.details["probe"][name].values())))
        assert 0 < result.metrics[name] <= 1
    assert "sm_score" not in result.metrics  # kd associates no maps
    assert result.details["transfer"]["splits"]["train"] > 0
    for name in ("before", "after", "teacher"):
        assert 0.5 <= result.metrics[f"transfer_{name}"] <= 1
    with Image.open(runs.place / "pictures/kd/grad_cam.png") as picture:
        assert picture.height > picture.width  # six rows of images; a column for each of three networks


def test_a_student_with_the_teachers_weights_is_similar_to_it(runs: SmallRuns) -> None:
    big = runs.place / "big"
    for folder in ("same", "initial same"):
        facts = load_facts(big) | {"val_accuracy": 0.5}
        save_network(runs.place / folder / "seed-0", load_network_weights(big), facts)
    past = Record("distill", "kd", {}, details={"overview": [["stage1", "", "", "stage1"]]})
    initial, students = runs.place / "initial same", runs.place / "same"
    result = analysed(runs, "kd", past, initial=initial, students=students, transfer=True)
    for when in ("before", "after"):
        assert np.diag(result.details["maps"][when]) == pytest.approx(1)
    assert result.metrics["cka"] == pytest.approx(1)
    assert "sm_score" not in result.metrics  # 0 has no logarithm
    assert result.metrics["transfer_after"] == result.metrics["transfer_teacher"]
    assert result.details["probe"]["probe_before"] == result.details["probe"]["probe_after"]


def test_dictionaries_are_analysed_and_dead_ones_reported(runs: SmallRuns) -> None:
    result = trained_and_analysed(runs, "srm", images=0)
    assert set(result.details["pictures"]) == {"maps.png", "dictionaries.png"}
    found = result.details["dictionaries"][0]
    assert found == result.details["dictionaries"][1]  # both seeds use the teacher's
    for name, health in found.items():
        assert result.metrics[f"atoms_used/{name}"] == pytest.approx(health["used"] / health["atoms"])
        assert result.metrics[f"dictionary_error/{name}"] == pytest.approx(health["error"])
        is_dead = health["used"] < health["atoms"] / 2 or health["error"] > 0.9
        sentence = f"dictionary of {name} is dead in 2 of 2 seeds"
        assert any(sentence in warning for warning in result.details["warnings"]) == is_dead
    assert result.details["warnings"]  # two epochs are too few
    assert result.metrics["sm_score"] != 0


def test_learned_associations_are_drawn_and_are_the_weights_of_the_scores(runs: SmallRuns) -> None:
    result = trained_and_analysed(runs, "semckd", images=2)
    assert set(result.details["pictures"]) == {"maps.png", "grad_cam.png", "associations.png"}
    weights = {(s, t): weight for s, t, weight in result.details["associations"]}
    students = {s for s, _ in weights}
    assert sum(weights.values()) == pytest.approx(len(students))
    maps = result.details["maps"]
    weighted = [
        weight * maps["after"][maps["student"].index(s)][maps["teacher"].index(t)]
        for (s, t), weight in weights.items()
    ]
    assert result.metrics["cka"] == pytest.approx(sum(weighted) / len(students))


@pytest.mark.parametrize("name", ["semckd", "pre"])
def test_the_score_of_a_seed_has_its_own_weights_and_the_maps_of_its_method(
    runs: SmallRuns, name: str
) -> None:
    runs.pretrain(name)
    past = Record("distill", name, {})
    past.add(runs.distill(name))
    for n, curve in enumerate(past.curves.values()):  # weights that differ much from seed to seed
        for column in [column for column in curve if "~" in column]:
            curve[column][-1] = 0.9 if column.endswith(f"~stage{n + 1}") else 0.05
    students = runs.place / "students" / name
    result = analysed(runs, name, past, initial=runs.place / "initial" / name, students=students, images=0)
    context, scores = context_of(runs), []
    teacher, rows = context.load_network(runs.place / "big"), context.validation.rows
    assert len(rows) < BATCH
    for seed in (0, 1):
        answers = []
        for net in (context.load_network(students / f"seed-{seed}"), teacher):
            with torch.no_grad():
                answer = net(context.images(rows, net.input))
            answers.append(replace(answer, maps=answer.preactivations) if name == "pre" else answer)
        by_student, by_teacher = answers
        scores.append(np.log(mismatch(by_student, by_teacher, associations.learned(past)[seed])))
    assert result.metrics["sm_score"] == pytest.approx(np.mean(scores))
    assert result.metrics["sm_score_spread"] == pytest.approx(np.std(scores, ddof=1))
    assert result.details["sm_score"] == {
        "split": "validation",
        "images": len(rows),
        "batch": BATCH,
        "before_activation": name == "pre",
    }
    assert f"batches of {BATCH} validation images" in (ROOT / "pipeline/report/report.html").read_text()


def test_dictionaries_of_a_partner_are_analysed(runs: SmallRuns) -> None:
    assert "dictionaries.png" in trained_and_analysed(runs, "mixed", images=0).details["pictures"]


def test_images_are_taken_from_each_class_in_turn() -> None:
    labels = np.array([2, 0, 0, 1, 2, 1, 4])
    assert labels[_one_of_each(labels, 6)].tolist() == [0, 1, 2, 4, 0, 1]
    assert _one_of_each(labels, 2).tolist() == [1, 6]  # of the first and the last class
    assert len(_one_of_each(labels, 40)) == 7


def context_of(runs: SmallRuns) -> Context:
    run = runs.params().run("kd")
    return Context.of_students(runs.data, run.protocol, run.augment)


def test_too_few_validation_images_are_refused(runs: SmallRuns) -> None:
    context, run = context_of(runs), runs.params().run("kd")
    teacher, found = context.load_network(runs.place / "big"), context.validation
    context.validation = replace(found, rows=found.rows[:3], labels=found.labels[:3])
    with pytest.raises(InputError, match=r"analysis\.kd: 3 validation images are too few"):
        next(Subject(run, context, teacher, {}, {}, 0).answers(teacher))


def test_before_and_after_are_not_mixed_up(runs: SmallRuns) -> None:
    """Before, the student has the teacher's weights; after, all its weights are 0."""
    weights, facts = load_network_weights(runs.place / "big"), load_facts(runs.place / "big")
    facts |= {"val_accuracy": 0.25}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    initial, students = runs.place / "full", runs.place / "zero"
    save_network(initial / "seed-3", weights, facts)
    save_network(students / "seed-3", zeros, facts)
    past = Record("distill", "kd", {}, details={"overview": []})
    result = analysed(runs, "kd", past, initial=initial, students=students, transfer=True)
    metrics = result.metrics
    assert np.diag(result.details["maps"]["before"]) == pytest.approx(1)
    assert np.array(result.details["maps"]["after"]) == pytest.approx(0)
    assert metrics["probe_before"] > metrics["probe_after"] == pytest.approx(1 / 3, abs=0.15)
    assert metrics["transfer_before"] == metrics["transfer_teacher"] > metrics["transfer_after"]
    context = context_of(runs)
    teacher, store = context.load_network(runs.place / "big"), context.store
    train, validation = (
        (embeddings(teacher, store.images, part.rows), part.labels)
        for part in (context.subset, context.validation)
    )
    assert metrics["probe_before"] == cross_probe(*train, *validation)
    assert metrics["layer_before"] == layer_probe(*train, *validation)
    assert metrics["whole_network"] == 0.25
    assert "whole_network_spread" not in metrics  # one seed
