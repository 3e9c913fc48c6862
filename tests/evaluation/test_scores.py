import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.evaluation.scores import MISTAKES, Scores, logits_of, score, summarise
from pipeline.settings import InputError


def scores(accuracy: float, **others: float | None) -> Scores:
    means = {"balanced_accuracy": accuracy - 0.1, "macro_f1": accuracy - 0.2}
    values = {"top5": None, "ece": 0.1, "agreement": None, **means, **others}
    rest: dict[str, Any] = {"per_class": [], "images_per_class": [], "mistakes": [], **values}
    return Scores(accuracy=accuracy, n=10, **rest)


def slow(logits: np.ndarray, labels: np.ndarray, classes: int, teacher: np.ndarray) -> dict[str, float]:
    right = five = agree = 0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label, other in zip(logits.tolist(), labels.tolist(), teacher.tolist(), strict=True):
        order = sorted(range(classes), key=lambda c: (-row[c], c))
        right += order[0] == label
        five += label in order[:5]
        agree += order[0] == max(range(classes), key=lambda c: (other[c], -c))
        confidence = 1 / sum(math.exp(x - row[order[0]]) for x in row)
        for b in range(15):
            if b / 15 < confidence <= (b + 1) / 15:
                bins[b].append((confidence, order[0] == label))
    n = len(labels)
    ece = sum(
        len(b) / n * abs(sum(c for c, _ in b) / len(b) - sum(r for _, r in b) / len(b)) for b in bins if b
    )
    return {"accuracy": right / n, "top5": five / n, "agreement": agree / n, "ece": ece}


@pytest.mark.parametrize("classes", [6, 10])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_slow_loop(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, teacher = (rng.integers(-3, 4, (200, classes)).astype(np.float32) for _ in range(2))  # many ties
    labels = rng.integers(0, classes, 200)
    got = score(logits, labels, classes, teacher)
    for name, value in slow(logits, labels, classes, teacher).items():
        assert getattr(got, name) == pytest.approx(value, abs=1e-12), name


def test_scores_equal_those_of_sklearn() -> None:
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        f1_score,
        recall_score,
        top_k_accuracy_score,
    )

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 8)).astype(np.float32), rng.integers(0, 8, 300)
    got, predicted = score(logits, labels, 8), logits.argmax(1)
    assert got.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert got.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    counts = confusion_matrix(labels, predicted)
    assert got.images_per_class == counts.sum(1).tolist()
    pairs = [(i, j, int(counts[i, j])) for i in range(8) for j in range(8) if i != j and counts[i, j]]
    assert got.mistakes == sorted(pairs, key=lambda pair: -pair[2])[:MISTAKES]
    assert len(pairs) > MISTAKES
    assert got.per_class == pytest.approx(recall_score(labels, predicted, average=None))
    assert got.balanced_accuracy == pytest.approx(recall_score(labels, predicted, average="macro"))
    assert got.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert got.n == 300
    assert got.agreement is None


def test_confident_and_always_wrong_predictions_have_the_largest_error() -> None:
    got = score(np.tile([[100.0, 0.0]], (5, 1)), np.ones(5, dtype=int), 2)
    assert (got.accuracy, got.top5) == (0, None)
    assert got.ece == pytest.approx(1)
    assert got.per_class == [None, 0.0]  # class 0 does not occur
    assert (got.images_per_class, got.mistakes) == ([0, 5], [(1, 0, 5)])


def test_a_constant_network_scores_chance_and_is_calibrated() -> None:
    got = score(np.zeros((70, 7)), np.repeat(np.arange(7), 10), 7)
    assert got.accuracy == pytest.approx(1 / 7)
    assert got.top5 == pytest.approx(5 / 7)
    assert got.ece == pytest.approx(0, abs=1e-12)


@given(data=st.data(), classes=st.integers(2, 7), n=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_scores_are_within_bounds_and_do_not_depend_on_the_order(
    data: st.DataObject, classes: int, n: int
) -> None:
    logits = data.draw(hnp.arrays(np.float32, (n, classes), elements=st.floats(-100, 100, width=16)))
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    got = score(logits, labels, classes, logits)
    assert 0 <= got.accuracy <= 1
    assert 0 <= got.ece <= 1 + 1e-12
    assert got.agreement == 1
    assert sum(got.images_per_class) == n
    assert sum(images for _, _, images in got.mistakes) == n - round(got.accuracy * n)
    order = np.random.default_rng(0).permutation(n)
    again = score(logits[order], labels[order], classes)
    assert (again.images_per_class, again.mistakes) == (got.images_per_class, got.mistakes)
    assert again.ece == pytest.approx(got.ece, abs=1e-9)


def test_scores_become_json() -> None:
    got = json.loads(json.dumps(dataclasses.asdict(score(np.eye(3), np.array([0, 2, 2]), 3))))
    assert (got["images_per_class"], got["mistakes"]) == ([1, 0, 2], [[2, 1, 1]])


@pytest.mark.parametrize(
    ("logits", "labels", "match"),
    [
        (np.array([[0.0, np.nan]]), [0], "NaN"),
        (np.array([[0.0, np.inf]]), [0], "infinity"),
        (np.zeros((2, 2)), [0], "shape"),
        (np.zeros((1, 3)), [0], "shape"),
        (np.zeros((1, 2)), [2], "labels"),
        (np.zeros((1, 2)), [-1], "labels"),
        (np.zeros((0, 2)), [], "labels"),
    ],
)
def test_unusable_logits_and_labels_are_refused(logits: np.ndarray, labels: list[int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        score(logits, np.array(labels, dtype=int), 2)


def test_a_teacher_with_other_classes_is_refused() -> None:
    with pytest.raises(InputError, match="teacher logits"):
        score(np.zeros((1, 2)), np.array([0]), 2, np.zeros((1, 3)))


@pytest.mark.parametrize("progress", [False, True])
def test_logits_are_in_the_order_of_the_rows(progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
    images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    sizes = []

    def predict(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        assert batch.dtype == np.uint8
        return batch.reshape(len(batch), -1).astype(np.float32)

    rows = [9, 0, 3, 3, 7]
    got = logits_of(predict, images, rows, batch_size=2, progress=progress)
    assert np.array_equal(got, images.reshape(10, 4)[rows])
    assert sizes == [2, 2, 1]
    assert capfd.readouterr() == ("", "")  # no progress bar unless on a terminal


def test_no_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        logits_of(lambda batch: batch, np.zeros((3, 2, 2, 1), np.uint8), [])


def test_a_summary_holds_means_and_the_spread() -> None:
    got = summarise(
        [scores(0.5, ece=0.1, agreement=0.8, top5=0.9), scores(0.7, ece=0.3, agreement=0.6, top5=1.0)]
    )
    assert got == pytest.approx(
        {"accuracy": 0.6, "spread": math.sqrt(0.02), "n": 2, "ece": 0.2, "agreement": 0.7, "top5": 0.95}
        | {"balanced_accuracy": 0.5, "macro_f1": 0.4}
    )


def test_a_summary_of_one_seed_without_a_teacher() -> None:
    means = {"balanced_accuracy": 0.4, "macro_f1": 0.3}
    assert summarise([scores(0.5)]) == {"accuracy": 0.5, "n": 1, "ece": 0.1} | means
