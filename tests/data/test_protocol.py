import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.data.protocol import ProtocolConfig, subset
from pipeline.inputs import InputError

LABELS = np.arange(60) % 3
TRAIN = np.arange(45)
CLASSES = ["cat", "dog", "eel"]


def rows(shots: int, seed: int = 0) -> set[int]:
    return set(subset(LABELS, TRAIN, ProtocolConfig(shots=shots, seed=seed), classes=CLASSES).rows.tolist())


def test_no_shots_is_everything() -> None:
    sample = subset(LABELS, TRAIN, ProtocolConfig(), classes=CLASSES)
    assert np.array_equal(sample.rows, TRAIN)
    assert np.array_equal(sample.labels, LABELS[TRAIN])


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 10**9))
def test_fewer_shots_are_among_more(one: int, other: int, seed: int) -> None:
    few, many = rows(min(one, other), seed), rows(max(one, other), seed)
    assert few <= many <= set(TRAIN.tolist())
    assert [sum(LABELS[row] == label for row in few) for label in range(3)] == [min(one, other)] * 3


def test_the_seed_draws() -> None:
    assert rows(5, seed=1) == rows(5, seed=1) != rows(5, seed=2)


def test_labels_belong_to_rows() -> None:
    sample = subset(LABELS, TRAIN[::-1], ProtocolConfig(shots=4), classes=CLASSES)
    assert np.array_equal(sample.labels, LABELS[sample.rows])
    assert np.array_equal(sample.rows, np.sort(sample.rows))


def test_too_many_shots_name_the_class() -> None:
    with pytest.raises(InputError, match=r"protocol\.shots: 15 .*class 'eel' has 14"):
        subset(LABELS, TRAIN[:-1], ProtocolConfig(shots=15), classes=CLASSES)


@pytest.mark.parametrize("field", ["shots", "seed"])
def test_negative_numbers_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ProtocolConfig(**{field: -1})
