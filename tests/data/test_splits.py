from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import Entry, assign, check, distinct
from pipeline.data.store import SPLITS
from pipeline.settings import InputError


def pool(counts: list[int], split: str | None = None) -> list[Entry]:
    return [
        Entry(label, split, f"{split}-{label}-{n}", f"p{split}-{label}-{n}")
        for label, count in enumerate(counts)
        for n in range(count)
    ]


SHARE = st.floats(0.01, 0.49)
COUNTS = st.lists(st.integers(3, 40), min_size=2, max_size=5)


@given(COUNTS, SHARE, SHARE, st.integers(0, 5))
def test_every_class_is_in_every_split_in_proportion(
    counts: list[int], val: float, test: float, seed: int
) -> None:
    entries = pool(counts)
    found = Counter(
        (entry.label, split)
        for entry, split in zip(entries, assign(entries, val=val, test=test, seed=seed), strict=True)
    )
    for label, count in enumerate(counts):
        sizes = {split: found[label, split] for split in SPLITS}
        assert sum(sizes.values()) == count
        assert min(sizes.values()) >= 1
        assert abs(sizes["test"] - count * test) <= 1
        if sizes["train"] > 1:  # otherwise nothing was left for proportions
            assert abs(sizes["val"] - count * val) <= 1


@given(COUNTS, st.randoms(), st.integers(0, 5))
def test_the_order_of_entries_does_not_matter(counts: list[int], random: Random, seed: int) -> None:
    entries = pool(counts)
    before = dict(zip(entries, assign(entries, val=0.1, test=0.2, seed=seed), strict=True))
    random.shuffle(entries)
    assert dict(zip(entries, assign(entries, val=0.1, test=0.2, seed=seed), strict=True)) == before


def test_only_seed_class_and_content_matter() -> None:
    entries = pool([30, 30])
    renumbered = [
        Entry(1 - entry.label, entry.split, entry.content, "other pixels" + entry.content)
        for entry in entries
    ]
    assert assign(entries, val=0.1, test=0.2, seed=3) == assign(renumbered, val=0.1, test=0.2, seed=3)
    assert assign(entries, val=0.1, test=0.2, seed=3) != assign(entries, val=0.1, test=0.2, seed=4)


@given(SHARE, SHARE)
def test_test_does_not_depend_on_the_share_of_val(one: float, other: float) -> None:
    entries = pool([20, 33])
    tests = [
        [split == "test" for split in assign(entries, val=val, test=0.3, seed=0)] for val in (one, other)
    ]
    assert tests[0] == tests[1]


@pytest.mark.parametrize("having", [("train",), ("train", "test"), ("train", "val"), SPLITS])
def test_given_splits_stay_and_missing_ones_are_cut_from_train(having: tuple[str, ...]) -> None:
    entries = [entry for split in having for entry in pool([10, 20], split)]
    result = assign(entries, val=0.1, test=0.2, seed=0)
    for entry, split in zip(entries, result, strict=True):
        assert split == entry.split or (entry.split == "train" and split not in having)
    sizes = Counter((split, entry.label) for entry, split in zip(entries, result, strict=True))
    for split, share in (("val", 0.1), ("test", 0.2)):
        assert [sizes[split, 0], sizes[split, 1]] == (
            [10, 20] if split in having else [10 * share, 20 * share]
        )


def test_a_copy_in_the_same_split_is_removed() -> None:
    entries = [Entry(0, None, "b", "same"), Entry(0, None, "a", "same"), Entry(0, None, "c", "other")]
    assert distinct(entries).remaining == [1, 2]  # of two encodings, the one with the smaller hash
    assert distinct(entries).duplicates == 1


def test_a_copy_of_a_test_picture_leaves_train_and_val() -> None:
    entries = [Entry(0, split, "a", "same") for split in ("train", "test", "val")]
    assert distinct(entries).remaining == [1]
    assert distinct(entries).duplicates == 2


def test_pixels_with_two_labels_are_all_removed() -> None:
    entries = [Entry(0, None, "a", "same"), Entry(1, None, "b", "same"), Entry(0, None, "c", "other")]
    result = distinct(entries)
    assert (result.remaining, result.duplicates, result.conflicts) == ([2], 0, [0, 1])


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(SPLITS), st.integers(0, 6)), min_size=1, max_size=40
    )
)
def test_no_pixels_remain_twice_and_every_removal_is_counted(rows: list[tuple[int, str, int]]) -> None:
    entries = [Entry(label, split, f"{pixels}", f"{pixels}") for label, split, pixels in rows]
    result = distinct(entries)
    pixels = [entries[i].pixels for i in result.remaining]
    assert len(set(pixels)) == len(pixels)
    assert len(result.remaining) + result.duplicates + len(result.conflicts) == len(entries)


def refuse(entries: list[Entry], classes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(
            [entry.label for entry in entries], [entry.split for entry in entries], classes, "data.root 'x'"
        )
    assert str(caught.value).startswith("data.root 'x': ")
    assert "\n" not in str(caught.value)


def test_one_class_is_refused() -> None:
    refuse(pool([9]), ["cat"], "only one class, 'cat'")


def test_a_class_in_test_only_is_refused() -> None:
    refuse(
        pool([9, 0], "train") + pool([3, 3], "test"), ["cat", "dog"], "class 'dog' is present in test only"
    )


def test_a_class_missing_from_test_is_refused() -> None:
    refuse(pool([9, 9], "train") + pool([3], "test"), ["cat", "dog"], "class 'dog' has no image in test")


def test_a_lack_of_training_images_is_refused() -> None:
    refuse(pool([3, 3], "test"), ["cat", "dog"], "no training images, only test")


@pytest.mark.parametrize(("others", "count", "needed"), [((), 2, 3), (("test",), 1, 2), (("val",), 1, 2)])
def test_a_class_too_small_to_cut_is_refused(others: tuple[str, ...], count: int, needed: int) -> None:
    given = [entry for split in others for entry in pool([1, 1], split)]
    train = "train" if others else None
    refuse(
        pool([9, count], train) + given,
        ["cat", "dog"],
        rf"class 'dog' has {count} usable image.*but {needed} are needed",
    )
    entries = pool([9, needed], train) + given
    check([entry.label for entry in entries], [entry.split for entry in entries], ["cat", "dog"], "x")
    assigned = zip(entries, assign(entries, val=0.4, test=0.5, seed=0), strict=True)
    assert sorted(split for entry, split in assigned if entry.label == 1) == ["test", "train", "val"]


def test_a_class_without_an_image_is_refused() -> None:
    refuse(pool([5, 0]), ["cat", "dog"], "class 'dog' has no usable image")
