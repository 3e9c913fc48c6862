from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.mixing import Mixture
from pipeline.settings import InputError

counts = st.integers(1, 60)


def ordered(mixture: Mixture, epoch: int = 0) -> np.ndarray:
    labels = np.zeros(mixture.labelled)
    return mixture.order(labels, seed=0, epoch=epoch, class_balance="none")


@given(counts, counts, st.integers(2, 20), st.floats(0.01, 0.99))
def test_every_batch_is_full_and_has_its_share(
    labelled: int, unlabelled: int, batch_size: int, share: float
) -> None:
    mixture = Mixture.of(labelled, unlabelled, batch_size, share)
    batches = ordered(mixture).reshape(len(mixture), batch_size)
    assert ((batches < labelled).sum(1) == mixture.in_batch).all()
    assert 1 <= mixture.in_batch < batch_size
    wanted = (1 - share) * batch_size
    assert abs(mixture.in_batch - wanted) <= 0.5 or mixture.in_batch in (1, batch_size - 1)
    assert mixture.share == mixture.in_batch / batch_size


@given(counts, counts, st.integers(2, 20), st.floats(0.01, 0.99))
def test_an_epoch_shows_every_image_and_the_larger_group_in_one_round(
    labelled: int, unlabelled: int, batch_size: int, share: float
) -> None:
    mixture = Mixture.of(labelled, unlabelled, batch_size, share)
    times = np.bincount(ordered(mixture), minlength=labelled + unlabelled)
    assert len(times) == labelled + unlabelled
    for group in (times[:labelled], times[labelled:]):
        assert group.min() >= 1
        assert group.max() - group.min() <= 1  # once again only when all others have come again
    others = batch_size - mixture.in_batch
    assert len(mixture) in (-(-labelled // mixture.in_batch), -(-unlabelled // others))


def test_what_is_not_refused_gives_each_part_a_labelled_image() -> None:
    accepted = 0
    for batch_size, in_batch, world, parts in product((7, 30, 64), range(1, 64, 3), range(1, 8), range(1, 5)):
        mixture = Mixture(50, 50, batch_size, in_batch)
        if in_batch >= batch_size or is_refused(mixture, world * parts):
            continue
        accepted += 1
        for share in np.array_split(ordered(mixture)[:batch_size], world):
            assert all((part < 50).any() for part in np.array_split(share, min(parts, len(share) // 2)))
    assert accepted > 300


def is_refused(mixture: Mixture, parts: int) -> bool:
    try:
        mixture.check(parts)
    except InputError:
        return True
    return False


def test_orders_of_two_epochs_differ() -> None:
    mixture = Mixture.of(10, 30, 8, 0.75)
    one, again, other = (ordered(mixture, epoch) for epoch in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(InputError, match=r"leaves 2 labelled image.* of 16.*4 parts.*Lower unlabelled_share"):
        Mixture.of(10, 10, 16, 0.9).check(4)


def test_the_labelled_images_are_balanced_if_this_is_wanted() -> None:
    labels = np.array([0] * 18 + [1] * 2)
    mixture = Mixture.of(20, 100, 10, 0.6)
    shown = np.zeros(2)
    for epoch in range(3):
        order = mixture.order(labels, seed=0, epoch=epoch, class_balance="sampler")
        assert set(order[order >= 20]) == set(range(20, 120))
        shown += np.bincount(labels[order[order < 20]], minlength=2)
    assert shown[0] == shown[1] == 3 * len(mixture) * 4 / 2
