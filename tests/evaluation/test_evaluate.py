import numpy as np

from pipeline.data.protocol import rows_of_classes
from pipeline.evaluation.evaluate import renumber
from pipeline.evaluation.scores import score


def test_labels_are_renumbered() -> None:
    assert renumber(np.array([0, 1, 2, 1]), old=[3, 5, 8], new=[5, 6, 8]).tolist() == [-1, 0, 2, 0]


def test_images_of_some_classes_are_scored_with_their_own_labels() -> None:
    labels = np.array([4, 1, 0, 4, 2, 1])
    images = rows_of_classes(labels, np.arange(6), (1, 4))
    logits = np.eye(2)[[1, 0, 1, 1]] * 9  # for images of the classes 4, 1, 4, 1: only the last is wrong
    got = score(logits, images.labels, 2)
    assert images.rows.tolist() == [0, 1, 3, 5]
    assert (got.accuracy, got.per_class) == (0.75, [0.5, 1.0])
