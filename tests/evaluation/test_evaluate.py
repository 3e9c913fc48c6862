import numpy as np
import pytest

from pipeline.data.protocol import rows_of_classes
from pipeline.evaluation.evaluate import renumber
from pipeline.evaluation.scores import score
from stages.evaluate import with_spread


def test_labels_are_renumbered() -> None:
    assert renumber(np.array([0, 1, 2, 1]), old=[3, 5, 8], new=[5, 6, 8]).tolist() == [-1, 0, 2, 0]


def test_images_of_some_classes_are_scored_with_their_own_labels() -> None:
    labels = np.array([4, 1, 0, 4, 2, 1])
    images = rows_of_classes(labels, np.arange(6), (1, 4))
    logits = np.eye(2)[[1, 0, 1, 1]] * 9  # for images of the classes 4, 1, 4, 1: only the last is wrong
    got = score(logits, images.labels, 2)
    assert images.rows.tolist() == [0, 1, 3, 5]
    assert (got.accuracy, got.per_class) == (0.75, [0.5, 1.0])


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"accuracy": 0.81, "n": 1}, "81.0% (1 seed)"),
        ({"accuracy": 0.81, "n": 1, "spread": 0.0}, "81.0% (1 seed)"),  # as records said it once
        ({"accuracy": 0.81, "n": 2, "spread": 0.004}, "81.0% ± 0.4% over 2 seeds"),
    ],
)
def test_one_seed_has_no_spread(metrics: dict[str, float], text: str) -> None:
    assert with_spread(metrics) == text
