"""What every file of images promises: rows are read as those of an array."""

from typing import Any

import numpy as np
import pytest

from pipeline.data.images import ImageFile
from pipeline.data.packed import PackedImages


def assert_rows_are_those_of(file: ImageFile | PackedImages, truth: np.ndarray) -> None:
    """Every way to ask for rows gives what an array gives."""
    count = len(truth)
    assert (file.shape, file.dtype, len(file)) == (truth.shape, truth.dtype, count)
    asked: list[Any] = [
        np.random.default_rng(2).integers(0, count, 64),
        np.array([7, 3, 7, count - 1, 0, 3]),
        np.array([[1, 2], [3, 0]]),
        np.array([], dtype=np.int64),
        np.array([-1]),
        truth[:, 0, 0, 0] > 99,
        slice(None),
        slice(10, 2, -3),
        slice(5, 5),
        17,
        np.int64(-3),
    ]
    for rows in asked:
        found = file[rows]
        assert found.shape == truth[rows].shape
        assert np.array_equal(found, truth[rows])
    with pytest.raises(IndexError):
        file[count]
