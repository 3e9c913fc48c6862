import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.data.protocol import among
from pipeline.evaluate import (
    Scores,
    calibration_error,
    centre_scores,
    class_centres,
    confidence,
    cross_task,
    gain,
    logits_of,
    score,
    seen_auc,
    summarise,
)
from pipeline.inputs import InputError


def scores(accuracy: float, **others: float | None) -> Scores:
    values = {"top5": None, "ece": 0.1, "agreement": None, **others}
    return Scores(accuracy=accuracy, per_class=[], confusion=[], n=10, **values)  # type: ignore[arg-type]


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
    ece = sum(len(b) / n * abs(sum(c for c, _ in b) / len(b) - sum(r for _, r in b) / len(b)) for b in bins if b)
    return {"accuracy": right / n, "top5": five / n, "agreement": agree / n, "ece": ece}


@pytest.mark.parametrize("classes", [6, 10])
@pytest.mark.parametrize("seed", range(5))
def test_score_equals_slow_loops(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, teacher = (rng.integers(-3, 4, (200, classes)).astype(np.float32) for _ in range(2))  # many ties
    labels = rng.integers(0, classes, 200)
    got = score(logits, labels, classes, teacher)
    for name, value in slow(logits, labels, classes, teacher).items():
        assert getattr(got, name) == pytest.approx(value, abs=1e-12), name


def test_score_agrees_with_sklearn() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, top_k_accuracy_score

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 8)).astype(np.float32), rng.integers(0, 8, 300)
    got, predicted = score(logits, labels, 8), logits.argmax(1)
    assert got.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert got.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert got.confusion == confusion_matrix(labels, predicted).tolist()
    assert got.per_class == pytest.approx(recall_score(labels, predicted, average=None))
    assert got.n == 300
    assert got.agreement is None


def test_calibrated_predictions_have_no_error() -> None:
    # three answers of four are right, and the network says 3/4
    labels = np.array([0, 0, 0, 1])
    logits = np.log(np.tile([[0.75, 0.25]], (4, 1)))
    assert calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)


def test_sure_and_always_wrong() -> None:
    got = score(np.tile([[100.0, 0.0]], (5, 1)), np.ones(5, dtype=int), 2)
    assert (got.accuracy, got.ece, got.top5) == (0, pytest.approx(1), None)
    assert got.per_class == [None, 0.0]  # class 0 doesn't occur
    assert got.confusion == [[0, 0], [5, 0]]


def test_a_constant_network_scores_chance_and_is_calibrated() -> None:
    got = score(np.zeros((70, 7)), np.repeat(np.arange(7), 10), 7)
    assert got.accuracy == pytest.approx(1 / 7)
    assert got.top5 == pytest.approx(5 / 7)
    assert got.ece == pytest.approx(0, abs=1e-12)


@given(data=st.data(), classes=st.integers(2, 7), n=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_bounds_and_invariances(data: st.DataObject, classes: int, n: int) -> None:
    logits = data.draw(hnp.arrays(np.float32, (n, classes), elements=st.floats(-100, 100, width=16)))
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    got = score(logits, labels, classes, logits)
    assert 0 <= got.accuracy <= 1
    assert 0 <= got.ece <= 1 + 1e-12
    assert got.agreement == 1
    assert sum(map(sum, got.confusion)) == n
    assert sum(got.confusion[i][i] for i in range(classes)) == round(got.accuracy * n)
    order = np.random.default_rng(0).permutation(n)
    again = score(logits[order], labels[order], classes)
    assert again.confusion == got.confusion
    assert again.ece == pytest.approx(got.ece, abs=1e-9)


def test_scores_become_json() -> None:
    got = score(np.eye(3), np.array([0, 1, 2]), 3)
    assert json.loads(json.dumps(dataclasses.asdict(got), allow_nan=False))["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


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
def test_refuses(logits: np.ndarray, labels: list[int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        score(logits, np.array(labels, dtype=int), 2)


def test_refuses_a_teacher_with_other_classes() -> None:
    with pytest.raises(InputError, match="teacher logits"):
        score(np.zeros((1, 2)), np.array([0]), 2, np.zeros((1, 3)))


@pytest.mark.parametrize("progress", [False, True])
def test_logits_of_keeps_order_over_batches(progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
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
    assert capfd.readouterr() == ("", "")  # a log gets no bar


def test_logits_of_refuses_nothing() -> None:
    with pytest.raises(InputError, match="no rows"):
        logits_of(lambda batch: batch, np.zeros((3, 2, 2, 1), np.uint8), [])


def test_summarise() -> None:
    got = summarise([scores(0.5, ece=0.1, agreement=0.8, top5=0.9), scores(0.7, ece=0.3, agreement=0.6, top5=1.0)])
    assert got == pytest.approx({"accuracy": 0.6, "spread": math.sqrt(0.02), "n": 2, "ece": 0.2, "agreement": 0.7, "top5": 0.95})


def test_summarise_one_seed_without_a_teacher() -> None:
    assert summarise([scores(0.5)]) == {"accuracy": 0.5, "spread": 0.0, "n": 1, "ece": 0.1}


def test_paired_gain_is_scipys() -> None:
    from scipy import stats

    run, alone = {0: 0.71, 1: 0.75, 2: 0.70}, {2: 0.66, 0: 0.68, 1: 0.69}
    got = gain(run, alone)
    want = stats.ttest_rel([run[s] for s in range(3)], [alone[s] for s in range(3)]).confidence_interval(0.95)
    assert (got.mean, got.low, got.high) == pytest.approx((np.mean([0.03, 0.06, 0.04]), want.low, want.high))
    assert (got.n, got.paired) == (3, True)


def test_unpaired_gain_is_welchs() -> None:
    from scipy import stats

    run, alone = {0: 0.71, 1: 0.75, 2: 0.70, 9: 0.9}, {2: 0.66, 5: 0.68, 6: 0.69}
    got = gain(run, alone)
    want = stats.ttest_ind(list(run.values()), list(alone.values()), equal_var=False).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert (got.n, got.paired) == (3, False)


def test_gain_pairs_where_one_side_has_more_seeds() -> None:
    assert gain({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5, 2: 0.0}) == gain({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5})


def test_gain_of_one_seed_has_no_interval() -> None:
    got = gain({0: 0.5}, {0: 0.4, 1: 0.3})
    assert (got.mean, got.low, got.high, got.n, got.paired) == (pytest.approx(0.1), None, None, 1, True)
    assert gain({5: 0.5}, {0: 0.4, 1: 0.3}).low is None


def test_gain_without_any_variance_is_a_point() -> None:
    got = gain({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25})
    assert (got.mean, got.low, got.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_covers_as_often_as_it_says(paired: bool) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        start = rng.normal(size=3)
        run = dict(enumerate(2 + rng.normal(size=3) + (start if paired else 0)))
        alone = {seed + (0 if paired else 10): value for seed, value in enumerate(rng.normal(size=3) + (start if paired else 0))}
        got = gain(run, alone)
        assert got.low is not None
        assert got.high is not None
        hits += got.low <= 2 <= got.high
    assert 930 <= hits <= 985  # Welch is a little careful with 3 against 3


def test_gain_needs_seeds() -> None:
    with pytest.raises(InputError, match="at least one seed"):
        gain({}, {0: 0.1})


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_cross_task_equals_the_slow_loop(data: st.DataObject) -> None:
    teacher, student = (data.draw(st.sets(st.integers(0, 9), min_size=1)) for _ in range(2))
    both = sorted(teacher | student)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    shown = [*both, *rng.choice(both, data.draw(st.integers(0, 30)))]  # every class at least once
    logits = rng.normal(size=(len(shown), len(both)))
    got = cross_task(logits, np.array(shown), tuple(teacher), tuple(student))
    right = [both[row.index(max(row))] == label for row, label in zip(logits.tolist(), shown, strict=True)]
    old = [hit for hit, label in zip(right, shown, strict=True) if label in teacher]
    new = [hit for hit, label in zip(right, shown, strict=True) if label in student]
    assert (got.old, got.new) == pytest.approx((sum(old) / len(old), sum(new) / len(new)))
    assert got.joint == pytest.approx((got.old + got.new) / 2)
    assert min(got.old, got.new) - 1e-12 <= got.harmonic_mean <= got.joint + 1e-12


def test_the_joint_accuracy_takes_as_many_images_from_either_side() -> None:
    labels = np.array([0] * 90 + [1] * 10)  # all of the teacher's class are right, none of the student's
    got = cross_task(np.tile([[1.0, 0.0]], (100, 1)), labels, (0,), (1,))
    assert (got.old, got.new, got.joint, got.harmonic_mean) == (1, 0, 0.5, 0)


def test_a_class_of_both_counts_in_both() -> None:
    labels = np.array([2, 5, 5, 7])
    logits = np.eye(3)[[0, 1, 0, 0]]  # one of the two 5s is right, the 7 is wrong
    got = cross_task(logits, labels, (2, 5), (5, 7))
    assert (got.old, got.new) == pytest.approx((2 / 3, 1 / 3))


def test_the_same_classes_have_one_accuracy() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 4, 50), rng.normal(size=(50, 4))
    got, plain = cross_task(logits, labels, range(4), range(4)), score(logits, labels, 4).accuracy
    assert (got.old, got.new, got.joint, got.harmonic_mean) == pytest.approx((plain,) * 4)


@pytest.mark.parametrize(
    ("labels", "columns", "match"),
    [([3], 2, "of those the teacher or the student learned"), ([], 2, "at least one image"), ([0, 1], 3, "shape"), ([0, 0], 2, "balance")],
)
def test_cross_task_refuses(labels: list[int], columns: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        cross_task(np.zeros((len(labels), columns)), np.array(labels, dtype=int), (0,), (1,))


def test_images_of_some_classes_are_scored_with_their_own_labels() -> None:
    labels = np.array([4, 1, 0, 4, 2, 1])
    tested = among(labels, np.arange(6), (1, 4))
    logits = np.eye(2)[[1, 0, 1, 1]] * 9  # of the images of classes 4, 1, 4, 1: only the last is wrong
    got = score(logits, tested.labels, 2)
    assert tested.rows.tolist() == [0, 1, 3, 5]
    assert (got.accuracy, got.per_class) == (0.75, [0.5, 1.0])


def test_the_nearest_centre_is_sklearns() -> None:
    from sklearn.neighbors import NearestCentroid

    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 4 * 3, rng.normal(size=(40, 5)).astype(np.float32)
    centres = class_centres(train, labels, [0, 3, 6, 9])
    got = centre_scores(test, centres)
    assert np.array_equal(3 * got.argmax(1), NearestCentroid().fit(train, labels).predict(test))
    assert got == pytest.approx(-np.square(test[:, None].astype(float) - centres).sum(2))


def test_a_class_without_images_has_no_centre() -> None:
    with pytest.raises(InputError, match=r"classes \[2\]"):
        class_centres(np.zeros((2, 3)), np.array([0, 1]), [0, 1, 2])


def test_confidence_is_the_largest_probability() -> None:
    assert confidence(np.log([[0.2, 0.7, 0.1], [0.5, 0.5, 1e-9]])) == pytest.approx([0.7, 0.5])
    assert confidence(np.array([[-1e6, -2e6]], dtype=np.float32)).tolist() == [1.0]


def test_seen_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 6, 80), rng.integers(0, 9, 80) / 9  # with ties, which count half
    seen, unseen = weights[labels % 2 == 0], weights[labels % 2 == 1]
    pairs = (seen[:, None] > unseen).mean() + (seen[:, None] == unseen).mean() / 2
    assert seen_auc(weights, labels, (0, 2, 4)) == pytest.approx(pairs)


@pytest.mark.parametrize("teacher", [(0, 1, 2), (7,)])
def test_one_kind_alone_has_no_auc(teacher: tuple[int, ...]) -> None:
    assert seen_auc(np.ones(3), np.array([0, 1, 2]), teacher) is None
