from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.data.protocol import (
    ProtocolConfig,
    Subset,
    class_sets,
    describe_subset,
    draw_subset,
    rows_of_classes,
)
from pipeline.settings import InputError

LABELS = np.arange(60) % 3
TRAIN = np.arange(45)
CLASSES = ["cat", "dog", "eel"]
MANY = [f"class {n}" for n in range(21)]

shares = st.floats(0.01, 1)
seeds = st.integers(0, 10**9)


def drawn(**settings: Any) -> Subset:
    return draw_subset(LABELS, TRAIN, ProtocolConfig(**settings), classes=CLASSES)


def rows(**settings: Any) -> set[int]:
    return set(drawn(**settings).rows.tolist())


def wrong(**settings: Any) -> dict[int, int]:
    """Row -> label, for the rows whose label differs from the store's."""
    subset = drawn(**settings)
    return {
        row: label
        for row, label in zip(subset.rows.tolist(), subset.labels.tolist(), strict=True)
        if label != LABELS[row]
    }


def test_by_default_everything_is_drawn() -> None:
    subset = drawn()
    assert np.array_equal(subset.rows, TRAIN)
    assert np.array_equal(subset.labels, LABELS[TRAIN])
    assert subset.classes == (0, 1, 2)


@given(st.integers(1, 15), st.integers(1, 15), seeds)
def test_fewer_shots_are_among_more(one: int, other: int, seed: int) -> None:
    few, many = rows(shots=min(one, other), seed=seed), rows(shots=max(one, other), seed=seed)
    assert few <= many <= set(TRAIN.tolist())
    assert [sum(LABELS[row] == label for row in few) for label in range(3)] == [min(one, other)] * 3


@given(shares, shares, seeds)
def test_a_smaller_fraction_is_part_of_a_larger(one: float, other: float, seed: int) -> None:
    small, large = sorted((one, other))
    assert rows(fraction=small, seed=seed) <= rows(fraction=large, seed=seed)


@pytest.mark.parametrize(
    ("fraction", "each"), [(0.001, 1), (0.1, 2), (0.4, 6), (0.5, 8), (0.99, 15), (1.0, 15)]
)
def test_a_fraction_takes_the_same_share_of_every_class(fraction: float, each: int) -> None:
    chosen = rows(fraction=fraction)
    assert [sum(LABELS[row] == label for row in chosen) for label in range(3)] == [each] * 3


def test_a_fraction_of_uneven_classes_keeps_them_uneven() -> None:
    labels = np.repeat([0, 1, 2], [30, 10, 20])
    subset = draw_subset(labels, np.arange(60), ProtocolConfig(fraction=0.5), classes=CLASSES)
    assert np.bincount(subset.labels).tolist() == [15, 5, 10]


def test_shots_and_a_fraction_draw_the_same_images() -> None:
    assert rows(shots=6) == rows(fraction=0.4)


@pytest.mark.parametrize("how", [{"shots": 5}, {"fraction": 0.4}])
def test_another_seed_draws_other_images(how: dict[str, Any]) -> None:
    assert rows(**how, seed=1) == rows(**how, seed=1) != rows(**how, seed=2)


def test_labels_belong_to_their_rows() -> None:
    subset = draw_subset(LABELS, TRAIN[::-1], ProtocolConfig(shots=4), classes=CLASSES)
    assert np.array_equal(subset.labels, LABELS[subset.rows])
    assert np.array_equal(subset.rows, np.sort(subset.rows))


def test_too_many_shots_name_the_class() -> None:
    with pytest.raises(InputError, match=r"protocol\.shots: 15 .*class 'eel' has only 14"):
        draw_subset(LABELS, TRAIN[:-1], ProtocolConfig(shots=15), classes=CLASSES)


@given(st.floats(0, 1), st.floats(0, 1), seeds)
def test_less_label_noise_is_part_of_more(one: float, other: float, seed: int) -> None:
    little, much = (wrong(label_noise=p, seed=seed) for p in sorted((one, other)))
    assert little.items() <= much.items()
    assert len(much) == int(max(one, other) * 45 + 0.5)


@given(st.integers(1, 15), seeds)
def test_an_image_has_the_same_wrong_label_in_every_subset(shots: int, seed: int) -> None:
    everywhere = wrong(label_noise=1.0, seed=seed)
    assert wrong(label_noise=1.0, seed=seed, shots=shots).items() <= everywhere.items()
    assert wrong(label_noise=0.3, seed=seed, shots=shots).items() <= everywhere.items()


def test_label_noise_is_symmetric_and_seeded() -> None:
    labels = np.arange(40_000) % 4
    cfg = ProtocolConfig(label_noise=0.5)
    noisy = draw_subset(labels, np.arange(40_000), cfg, classes=list("abcd")).labels
    counts = np.bincount(labels * 4 + noisy, minlength=16).reshape(4, 4)
    assert np.trace(counts) == 20_000
    off = counts[~np.eye(4, dtype=bool)]
    assert abs(off - 20_000 / 12).max() < 5 * (20_000 / 12) ** 0.5
    assert wrong(label_noise=0.5, seed=1) != wrong(label_noise=0.5, seed=2)


def test_label_noise_changes_neither_the_images_nor_the_store() -> None:
    before = LABELS.copy()
    assert rows(label_noise=0.4, shots=5) == rows(shots=5)
    assert np.array_equal(LABELS, before)


def test_with_all_both_networks_learn_every_class() -> None:
    assert class_sets(CLASSES, ProtocolConfig()) == ((0, 1, 2), (0, 1, 2))


@given(st.integers(4, 60), st.floats(0, 1), seeds)
def test_each_network_learns_half_of_the_classes_with_the_overlap_in_common(
    count: int, overlap: float, seed: int
) -> None:
    names = [str(n) for n in range(count)]
    teacher, student = class_sets(names, ProtocolConfig(class_overlap=overlap, class_seed=seed))
    assert len(set(teacher)) == len(set(student)) == len(teacher) == len(student) == count // 2
    assert len(set(teacher) & set(student)) == int(overlap * (count // 2) + 0.5)
    assert (list(teacher), list(student)) == (sorted(teacher), sorted(student))
    assert set(teacher) | set(student) <= set(range(count))


def test_one_teacher_serves_every_overlap_and_every_subset() -> None:
    sets = {class_sets(MANY, ProtocolConfig(class_overlap=n / 10, seed=n))[0] for n in range(11)}
    assert len(sets) == 1
    assert class_sets(MANY, ProtocolConfig(class_overlap=0, class_seed=1))[0] not in sets


def test_less_overlap_takes_classes_away_one_by_one() -> None:
    teacher, _ = class_sets(MANY, ProtocolConfig(class_overlap=1.0))
    common = [
        set(teacher) & set(class_sets(MANY, ProtocolConfig(class_overlap=n / 10))[1]) for n in range(11)
    ]
    assert all(few <= many for few, many in pairwise(common))
    assert (common[0], common[-1]) == (set(), set(teacher))


def test_three_classes_are_too_few_for_two_tasks() -> None:
    with pytest.raises(InputError, match=r"protocol\.class_overlap: 3 classes"):
        class_sets(CLASSES, ProtocolConfig(class_overlap=0.5))


def test_labels_are_positions_among_the_chosen_classes() -> None:
    subset = rows_of_classes(LABELS, np.array([8, 1, 3, 2, 0]), (2, 0))
    assert subset.rows.tolist() == [8, 3, 2, 0]
    assert subset.labels.tolist() == [0, 1, 0, 1]
    assert [subset.classes[label] for label in subset.labels] == LABELS[subset.rows].tolist()


def test_a_student_of_some_classes_learns_from_no_others() -> None:
    subset = draw_subset(LABELS, TRAIN, ProtocolConfig(shots=4), classes=CLASSES, ids=(0, 2))
    every_class = drawn(shots=4)
    assert np.array_equal(subset.rows, every_class.rows[every_class.labels != 1])
    assert np.array_equal(2 * subset.labels, LABELS[subset.rows])
    noisy = draw_subset(LABELS, TRAIN, ProtocolConfig(label_noise=1.0), classes=CLASSES, ids=(0, 2))
    assert np.array_equal(
        2 * noisy.labels, 2 - LABELS[noisy.rows]
    )  # with two classes, the wrong one is the other


def test_the_description_says_what_was_drawn() -> None:
    def facts(**settings: Any) -> dict[str, Any]:
        cfg = ProtocolConfig(**{"shots": 5, "label_noise": 0.3, **settings})
        subset = draw_subset(LABELS, TRAIN, cfg, classes=CLASSES, ids=(0, 2))
        return describe_subset(subset, LABELS, CLASSES)

    drawn = facts()
    assert drawn["classes"] == ["cat", "eel"]
    assert drawn["images"] == 10
    assert drawn["per_class"] == {"cat": 5, "eel": 5}
    assert drawn["flipped"] == 3
    assert facts() == drawn
    assert facts(seed=1)["sha256"] != drawn["sha256"]
    noisier = facts(label_noise=0.4)
    assert noisier["sha256"] == drawn["sha256"]
    assert noisier["flipped_sha256"] != drawn["flipped_sha256"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shots", -1),
        ("seed", -1),
        ("class_seed", -1),
        ("fraction", 0),
        ("fraction", 1.1),
        ("label_noise", -0.1),
        ("label_noise", 1.1),
    ],
)
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        ProtocolConfig(**{field: value})


@pytest.mark.parametrize("overlap", [-0.1, 1.1, "half", True, float("nan"), None])
def test_an_overlap_is_a_share_or_all(overlap: Any) -> None:
    with pytest.raises(ValidationError, match="number from 0 to 1, or all") as caught:
        ProtocolConfig(class_overlap=overlap)
    assert caught.value.error_count() == 1


def test_shots_and_fraction_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match=r"shots is 5 and fraction 0.1: only one of them"):
        ProtocolConfig(shots=5, fraction=0.1)


@given(st.integers(1, 14), seeds)
def test_the_rest_is_every_other_training_image(shots: int, seed: int) -> None:
    subset = drawn(shots=shots, seed=seed, rest="unlabelled")
    assert np.array_equal(np.sort(np.concatenate([subset.rows, subset.unlabelled])), TRAIN)
    alone = drawn(shots=shots, seed=seed)
    assert np.array_equal(subset.rows, alone.rows)
    assert np.array_equal(subset.labels, alone.labels)
    assert not len(alone.unlabelled)


def test_the_rest_is_of_the_students_classes() -> None:
    subset = draw_subset(
        LABELS, TRAIN, ProtocolConfig(fraction=0.5, rest="unlabelled"), classes=CLASSES, ids=[0, 2]
    )
    assert set(LABELS[subset.unlabelled]) == {0, 2}
    assert len(subset.unlabelled) == 30 - len(subset.rows)


def test_wrong_labels_are_among_the_labelled_images() -> None:
    noisy, clean = (
        drawn(shots=5, rest="unlabelled", **{"label_noise": noise} if noise else {}) for noise in (0.4, 0)
    )
    assert np.array_equal(noisy.unlabelled, clean.unlabelled)
    assert (noisy.labels != clean.labels).sum() == 6


def test_the_record_says_how_many_have_no_label() -> None:
    subset = drawn(shots=5, rest="unlabelled")
    facts = describe_subset(subset, LABELS, CLASSES)
    assert (facts["images"], facts["unlabelled"]) == (15, 30)
    assert facts["per_class"] == dict.fromkeys(CLASSES, 5)
    other = describe_subset(drawn(shots=5, seed=1, rest="unlabelled"), LABELS, CLASSES)
    assert facts["unlabelled_sha256"] != other["unlabelled_sha256"]


def test_a_rest_of_nothing_is_refused() -> None:
    with pytest.raises(
        ValidationError, match="rest is unlabelled, but all training images keep their labels"
    ):
        ProtocolConfig(rest="unlabelled")
    with pytest.raises(ValidationError, match=r"unused.*unlabelled"):
        ProtocolConfig(shots=1, rest="unlabeled")
