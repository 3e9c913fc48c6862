"""Teacher and student have different classes: a run from the protocol to its scores, and a slow reference."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import SmallRuns
from torch import Tensor, nn

from pipeline.checkpoint import load_facts, save_network
from pipeline.data.protocol import Subset, rows_of_classes
from pipeline.data.store import SCHEMA, Store
from pipeline.evaluation import cross_task, logits
from pipeline.evaluation.cross_task import class_centres, cross_task_scores, evaluate_cross_task, seen_auc
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.scores import score
from pipeline.functional import centre_scores
from pipeline.settings import InputError

RUN: dict[str, Any] = {"teacher": "big", "student": "small", "seeds": [0, 1]}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {"class_overlap": 0.5, "label_noise": 0.2},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 1, "batch_size": 8}}},
    "runs": {
        "refilled": RUN | {"method": {"name": "refilled"}},
        "kd": RUN | {"method": {"name": "kd"}},
        "kdgan": RUN | {"method": {"name": "kdgan", "kd_weight": 0}},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    runs = SmallRuns(tmp_path_factory.mktemp("cross task"), SETTINGS, images=60, classes=4)
    runs.train_teacher("big")
    return runs


def test_each_learns_its_own_classes_and_both_are_scored(runs: SmallRuns) -> None:
    runs.pretrain("refilled")
    subset = runs.distill("refilled").details["subset"]
    students = runs.place / "students/refilled"
    teacher_classes = load_facts(runs.place / "big")["classes"]
    student_classes = load_facts(students / "seed-0")["classes"]
    assert len(teacher_classes) == len(student_classes) == 2
    assert len(set(teacher_classes) & set(student_classes)) == 1
    assert subset["classes"] == student_classes
    assert subset["flipped"] > 0

    result, predictions = evaluate_run(runs.data, runs.place / "big", students, work=runs.place / "work")
    assert result.details["classes"] == student_classes
    assert result.details["teacher"]["classes"] == teacher_classes
    assert result.details["teacher"]["n"] == result.details["seeds"]["0"]["n"] == 6
    joint = [each["joint"] for each in result.details["cross_task"].values()]
    assert result.metrics["joint"] == pytest.approx(np.mean(joint))
    assert 0 <= result.metrics["harmonic_mean"] <= 1
    assert 0 <= result.metrics["seen_auc"] <= 1
    assert "agreement" not in result.metrics
    shared = student_classes.index(*(set(teacher_classes) & set(student_classes)))
    assert set(predictions.teacher.label) <= {-1, shared}


@pytest.mark.parametrize("name", ["kd", "kdgan"])
def test_a_method_that_reads_the_teachers_logits_is_refused(runs: SmallRuns, name: str) -> None:
    message = f"runs.{name}.method matches the teacher's logits, but with protocol.class_overlap"
    with pytest.raises(ValueError, match=message):
        runs.pretrain(name)


def test_runs_cannot_have_class_sets_of_their_own(runs: SmallRuns) -> None:
    kd = SETTINGS["runs"]["kd"] | {"protocol": {"class_overlap": 0.1}}
    with pytest.raises(ValueError, match=r"runs\.kd\.protocol\.class_overlap: runs share their teachers"):
        runs.params(runs={"kd": kd})


# a store of random images, and networks whose embedding is relu(W x + b) of the pixels x

SIZE, WIDTH = 2, 4
CLASSES = ["a", "b", "c", "d", "e", "f"]
TEACHER, STUDENT = (1, 3, 4), (0, 3, 5)  # class 3 belongs to both, class 2 to neither
SPLITS = {"train": 36, "val": 6, "test": 60}
MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.4, 0.2)
Weights = dict[str, Tensor]
Row = list[float]


def embedder(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE * SIZE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, num_classes)
    )


class Known:
    """The store in `data`, the networks in `teacher` and `students`, and the weights of each."""

    def __init__(self, place: Path) -> None:
        self.data, self.students = place / "data", place / "students"
        self.folders = {seed: self.students / f"seed-{seed}" for seed in (0, 1)}
        self.teacher = place / "teacher"
        self._save_store(np.random.default_rng(3))
        self.store = Store.open(self.data)
        torch.manual_seed(0)
        self.weights = {
            folder: self._save_network(folder, classes)
            for folder, classes in (
                (self.teacher, TEACHER),
                *((each, STUDENT) for each in self.folders.values()),
            )
        }

    def _save_store(self, random: np.random.Generator) -> None:
        labels = np.arange(sum(SPLITS.values())) % len(CLASSES)
        typical = random.uniform(60, 200, (len(CLASSES), SIZE, SIZE, 3))
        images = typical[labels] + random.normal(0, 50, (len(labels), SIZE, SIZE, 3))
        manifest = {"schema": SCHEMA, "content": "x", "splits": SPLITS, "unlabelled": 0, "classes": CLASSES}
        manifest |= {"size": SIZE, "channels": 3, "mean": MEAN, "std": STD}
        self.data.mkdir(parents=True)
        np.save(self.data / "images.npy", images.clip(0, 255).astype(np.uint8))
        np.save(self.data / "order.npy", np.arange(len(labels)))
        np.save(self.data / "labels.npy", labels)
        (self.data / "manifest.json").write_text(json.dumps(manifest))

    def _save_network(self, folder: Path, classes: Sequence[int]) -> Weights:
        net = embedder(len(classes))
        facts = {
            "net": f"{__name__}:embedder",
            "taps": {},
            "input": {"size": SIZE, "mean": MEAN, "std": STD},
            "channels": 3,
            "val_accuracy": 0.5,
            "val_loss": 1.0,
        }
        save_network(folder, net.state_dict(), facts | {"classes": [CLASSES[n] for n in classes]})
        return net.state_dict()

    def scores(self) -> dict[str, float]:
        """What `evaluate_cross_task` returns, as one dictionary."""
        means, of_seeds = evaluate_cross_task(self.store, self.teacher, self.folders, TEACHER, STUDENT)
        return means | {f"{name} {seed}": each[name] for seed, each in of_seeds.items() for name in each}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(tmp_path_factory.mktemp("known"))


def slow_embedding(image: np.ndarray, weights: Weights) -> Row:
    pixels = [
        (int(image[i, j, c]) / 255 - MEAN[c]) / STD[c]
        for c in range(3)
        for i in range(SIZE)
        for j in range(SIZE)
    ]
    rows, biases = weights["1.weight"].tolist(), weights["1.bias"].tolist()
    return [
        max(0.0, sum(w * x for w, x in zip(row, pixels, strict=True)) + bias)
        for row, bias in zip(rows, biases, strict=True)
    ]


def slow_points(
    known: Known, network: Path, classes: Sequence[int]
) -> tuple[list[tuple[int, Row]], list[Row]]:
    """For each test image of `classes` its class and its embedding; and the centres of `classes`."""
    train, test = range(SPLITS["train"]), range(SPLITS["train"] + SPLITS["val"], sum(SPLITS.values()))
    found = [slow_embedding(image, known.weights[network]) for image in known.store.images[:]]
    labels = known.store.labels.tolist()
    centres = []
    for label in classes:
        own = [found[row] for row in train if labels[row] == label]
        centres.append([sum(column) / len(own) for column in zip(*own, strict=True)])
    return [(labels[row], found[row]) for row in test if labels[row] in classes], centres


def slow_joint_scores(known: Known, network: Path) -> dict[str, float]:
    both = sorted({*TEACHER, *STUDENT})
    points, centres = slow_points(known, network, both)
    right = []
    for label, point in points:
        distances = [sum((x - c) ** 2 for x, c in zip(point, centre, strict=True)) for centre in centres]
        right.append((label, both[distances.index(min(distances))] == label))
    old, new = (
        sum(hit for label, hit in right if label in side) / sum(label in side for label, _ in right)
        for side in (TEACHER, STUDENT)
    )
    return {"old": old, "new": new, "joint": (old + new) / 2, "harmonic_mean": 2 * old * new / (old + new)}


def slow_seen_auc(known: Known) -> float:
    """The share of pairs of a seen and an unseen image in which the seen one has the larger weight."""
    weights: dict[bool, Row] = {True: [], False: []}
    points, centres = slow_points(known, known.teacher, STUDENT)
    for label, point in points:
        # the embedding times the centre of length one, over tau2, which is 2
        scores = [
            sum(x * c for x, c in zip(point, centre, strict=True)) / math.hypot(*centre) / 2
            for centre in centres
        ]
        exponentials = [math.exp(score) for score in scores]
        weights[label in TEACHER].append(max(exponentials) / sum(exponentials))
    pairs = [(a > b) + (a == b) / 2 for a in weights[True] for b in weights[False]]
    return sum(pairs) / len(pairs)


def slow_scores(known: Known) -> dict[str, float]:
    of_seeds = {seed: slow_joint_scores(known, folder) for seed, folder in known.folders.items()}
    means = {name: (of_seeds[0][name] + of_seeds[1][name]) / 2 for name in ("joint", "harmonic_mean")}
    scores = {f"{name} {seed}": each[name] for seed, each in of_seeds.items() for name in each}
    return means | scores | {"seen_auc": slow_seen_auc(known)}


def test_all_scores_equal_the_slow_reference(known: Known) -> None:
    reference = slow_scores(known)
    assert known.scores() == pytest.approx(reference, rel=1e-9)
    assert 0.3 < reference["seen_auc"] < 0.49  # of networks that nobody has trained
    assert all(0.3 < reference[f"{side} {seed}"] < 1 for side in ("old", "new") for seed in (0, 1))
    assert reference["old 1"] != reference["new 1"]


def test_the_second_run_of_a_teacher_does_not_ask_it_again(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, asked = logits._compute, 0

    def counted(*args: Any) -> np.ndarray:
        nonlocal asked
        asked += 1
        return compute(*args)

    monkeypatch.setattr(logits, "_compute", counted)
    counts, found = [], []
    for _ in range(2):
        result, predictions = evaluate_run(known.data, known.teacher, known.students, work=tmp_path)
        counts.append(asked)
        found.append((result.metrics, result.details, predictions.teacher.confidence.tolist()))
    assert counts == [4, 6]  # the teacher on the images of its own classes and of the students', two students
    assert found[0] == found[1]


def test_a_run_is_evaluated_with_these_scores(known: Known, tmp_path: Path) -> None:
    result, _ = evaluate_run(known.data, known.teacher, known.students, work=tmp_path)
    reference = slow_scores(known)
    for name in ("joint", "harmonic_mean", "seen_auc"):
        assert result.metrics[name] == pytest.approx(reference[name], rel=1e-9)
    for seed in (0, 1):
        expected = {name: reference[f"{name} {seed}"] for name in ("old", "new", "joint", "harmonic_mean")}
        assert result.details["cross_task"][str(seed)] == pytest.approx(expected, rel=1e-9)


def larger_tau(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cross_task, "TAU", 4.0)


def no_tau(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cross_task, "TAU", 1.0)


def centres_of_test_images(patch: pytest.MonkeyPatch) -> None:
    indices = Store.indices
    patch.setattr(Store, "indices", lambda store, split: indices(store, "test"))


def swapped_class_sets(patch: pytest.MonkeyPatch) -> None:
    def swapped(logits: np.ndarray, labels: np.ndarray, *sides: Sequence[int]) -> cross_task.CrossTask:
        return cross_task_scores(logits, labels, *reversed(sides))

    patch.setattr(cross_task, "cross_task_scores", swapped)


def auc_over_images_of_both(patch: pytest.MonkeyPatch) -> None:
    def more(labels: np.ndarray, rows: np.ndarray, ids: Sequence[int]) -> Subset:
        is_test = rows[0] == SPLITS["train"] + SPLITS["val"]
        return rows_of_classes(labels, rows, sorted({*TEACHER, *STUDENT}) if is_test else ids)

    patch.setattr(cross_task, "rows_of_classes", more)


def raw_images(patch: pytest.MonkeyPatch) -> None:
    def raw(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        return images.permute(0, 3, 1, 2).float()

    patch.setattr(cross_task, "normalise", raw)


@pytest.mark.parametrize(
    "fault",
    [larger_tau, no_tau, centres_of_test_images, swapped_class_sets, auc_over_images_of_both, raw_images],
)
def test_the_reference_notices_faults(
    known: Known, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert known.scores() != pytest.approx(slow_scores(known), rel=1e-9)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_scores_of_logits_equal_the_slow_loop(data: st.DataObject) -> None:
    teacher, student = (data.draw(st.sets(st.integers(0, 9), min_size=1)) for _ in range(2))
    both = sorted(teacher | student)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    labels = [*both, *rng.choice(both, data.draw(st.integers(0, 30)))]  # every class at least once
    logits = rng.normal(size=(len(labels), len(both)))
    got = cross_task_scores(logits, np.array(labels), tuple(teacher), tuple(student))
    right = [both[row.index(max(row))] == label for row, label in zip(logits.tolist(), labels, strict=True)]
    old = [hit for hit, label in zip(right, labels, strict=True) if label in teacher]
    new = [hit for hit, label in zip(right, labels, strict=True) if label in student]
    assert (got.old, got.new) == pytest.approx((sum(old) / len(old), sum(new) / len(new)))
    assert got.joint == pytest.approx((got.old + got.new) / 2)
    assert min(got.old, got.new) - 1e-12 <= got.harmonic_mean <= got.joint + 1e-12


def test_both_sides_weigh_the_same_in_the_joint_accuracy() -> None:
    labels = np.array([0] * 90 + [1] * 10)  # all of the teacher's class are right, none of the student's
    got = cross_task_scores(np.tile([[1.0, 0.0]], (100, 1)), labels, (0,), (1,))
    assert (got.old, got.new, got.joint, got.harmonic_mean) == (1, 0, 0.5, 0)


def test_a_class_of_both_counts_in_both() -> None:
    labels = np.array([2, 5, 5, 7])
    logits = np.eye(3)[[0, 1, 0, 0]]  # one of the two images of class 5 is right, that of class 7 is wrong
    got = cross_task_scores(logits, labels, (2, 5), (5, 7))
    assert (got.old, got.new) == pytest.approx((2 / 3, 1 / 3))


def test_with_the_same_classes_all_scores_are_the_plain_accuracy() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 4, 50), rng.normal(size=(50, 4))
    got, plain = cross_task_scores(logits, labels, range(4), range(4)), score(logits, labels, 4).accuracy
    assert (got.old, got.new, got.joint, got.harmonic_mean) == pytest.approx((plain,) * 4)


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ([3], 2, "a class that the teacher or the student has"),
        ([], 2, "at least one image"),
        ([0, 1], 3, "shape"),
        ([0, 0], 2, "no image of the teacher's classes, or none of the student's"),
    ],
)
def test_unusable_labels_and_logits_are_refused(labels: list[int], columns: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cross_task_scores(np.zeros((len(labels), columns)), np.array(labels, dtype=int), (0,), (1,))


def test_the_nearest_centre_is_that_of_sklearn() -> None:
    from sklearn.neighbors import NearestCentroid

    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    labels = np.arange(60) % 4 * 3
    centres = class_centres(train, labels, [0, 3, 6, 9])
    got = centre_scores(torch.from_numpy(test).double(), torch.from_numpy(centres)).numpy()
    assert np.array_equal(3 * got.argmax(1), NearestCentroid().fit(train, labels).predict(test))
    assert got == pytest.approx(-np.square(test[:, None].astype(float) - centres).sum(2))


def test_a_class_without_images_has_no_centre() -> None:
    with pytest.raises(InputError, match=r"classes \[2\]"):
        class_centres(np.zeros((2, 3)), np.array([0, 1]), [0, 1, 2])


def test_the_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 6, 80), rng.integers(0, 9, 80) / 9  # with ties, which count half
    seen, unseen = weights[labels % 2 == 0], weights[labels % 2 == 1]
    pairs = (seen[:, None] > unseen).mean() + (seen[:, None] == unseen).mean() / 2
    assert seen_auc(weights, labels, (0, 2, 4)) == pytest.approx(pairs)


@pytest.mark.parametrize("teacher", [(0, 1, 2), (7,)])
def test_without_seen_or_without_unseen_images_there_is_no_auc(teacher: tuple[int, ...]) -> None:
    assert seen_auc(np.ones(3), np.array([0, 1, 2]), teacher) is None
