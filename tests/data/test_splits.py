from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import Distinct, Entry, assign, check, check_assigned, distinct, held_out
from pipeline.data.store import NO_LABEL, SPLITS, UNLABELLED
from pipeline.settings import InputError


def pool(counts: list[int], split: str | None = None) -> list[Entry]:
    return [
        Entry(label, split, f"{split}-{label}-{n}", f"p{split}-{label}-{n}")
        for label, count in enumerate(counts)
        for n in range(count)
    ]


def chosen(entries: list[Entry]) -> Distinct:
    return distinct(dict(enumerate(entries)))


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
    found = chosen(entries)
    assert found.remaining == [1, 2]  # of two encodings, the one with the smaller hash
    assert found.copies == {0: 1}


def test_a_copy_of_a_test_picture_leaves_train_and_val() -> None:
    entries = [Entry(0, split, "a", "same") for split in ("train", "test", "val")]
    assert chosen(entries).remaining == [1]
    assert chosen(entries).copies == {0: 1, 2: 1}


def test_pixels_with_two_labels_are_all_removed() -> None:
    entries = [Entry(0, None, "a", "same"), Entry(1, None, "b", "same"), Entry(0, None, "c", "other")]
    assert chosen(entries) == Distinct([2], copies={}, conflicts={0: 1, 1: 0})


def test_an_unlabelled_copy_of_a_labelled_picture_is_dropped() -> None:
    bare = [
        Entry(NO_LABEL, UNLABELLED, content, pixels)
        for content, pixels in (("0", "a"), ("1", "b"), ("2", "b"))
    ]
    assert chosen([*bare, Entry(0, "train", "9", "a")]) == Distinct([1, 3], copies={0: 3, 2: 1}, conflicts={})
    contradictory = [Entry(0, None, "9", "a"), Entry(1, None, "8", "a")]
    assert chosen([*bare, *contradictory]) == Distinct([1], copies={2: 1}, conflicts={0: 3, 3: 4, 4: 3})


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(SPLITS), st.integers(0, 6)), min_size=1, max_size=40
    )
)
def test_no_pixels_remain_twice_and_every_removal_is_counted(rows: list[tuple[int, str, int]]) -> None:
    entries = [Entry(label, split, f"{pixels}", f"{pixels}") for label, split, pixels in rows]
    result = chosen(entries)
    pixels = [entries[i].pixels for i in result.remaining]
    assert len(set(pixels)) == len(pixels)
    assert len(result.remaining) + len(result.copies) + len(result.conflicts) == len(entries)


def refuse(entries: list[Entry], classes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(entries, classes, "data.root 'x'")
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
    check(entries, ["cat", "dog"], "x")
    assigned = zip(entries, assign(entries, val=0.4, test=0.5, seed=0), strict=True)
    assert sorted(split for entry, split in assigned if entry.label == 1) == ["test", "train", "val"]


def test_a_class_without_an_image_is_refused() -> None:
    refuse(pool([5, 0]), ["cat", "dog"], "class 'dog' has no usable image")


def grouped(counts: dict[str, list[int]], split: str | None = None) -> list[Entry]:
    """Entries of groups; `counts` holds the pictures of each class by the name of the group."""
    return [
        Entry(label, split, f"{group}-{label}-{n}", f"p{group}-{label}-{n}", group)
        for group, of_classes in counts.items()
        for label, count in enumerate(of_classes)
        for n in range(count)
    ]


def splits_of_groups(entries: list[Entry], assigned: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry, split in zip(entries, assigned, strict=True):
        found.setdefault(entry.group, set()).add(split)
    return found


GROUPS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(list), min_size=8, max_size=40)


@settings(max_examples=60)
@given(GROUPS, SHARE, SHARE, st.randoms(), st.integers(0, 5))
def test_groups_stay_whole_in_any_order(
    counts: list[list[int]], val: float, test: float, random: Random, seed: int
) -> None:
    entries = grouped({f"g{n}": each for n, each in enumerate(counts)}) + pool([2, 3])
    before = assign(entries, val=val, test=test, seed=seed)
    assert all(len(found) == 1 for group, found in splits_of_groups(entries, before).items() if group)
    found = dict(zip(entries, before, strict=True))
    random.shuffle(entries)
    assert dict(zip(entries, assign(entries, val=val, test=test, seed=seed), strict=True)) == found


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_cut_near_to_the_shares_in_every_class(seed: int) -> None:
    """200 patients with 1 to 9 pictures, most of one class, some of both; one class is rare."""
    random = Random(seed)
    counts = {f"patient {n}": [random.randint(1, 9), 0] for n in range(150)}
    counts |= {f"rare {n}": [random.randint(0, 2), random.randint(1, 9)] for n in range(50)}
    entries = grouped(counts)
    found = Counter(
        (e.label, split)
        for e, split in zip(entries, assign(entries, val=0.1, test=0.2, seed=seed), strict=True)
    )
    for label in (0, 1):
        total = sum(found[label, split] for split in SPLITS)
        assert found[label, "test"] / total == pytest.approx(0.2, abs=0.02)
        assert found[label, "val"] / total == pytest.approx(0.1, abs=0.02)


def test_a_large_group_is_taken_where_a_class_has_no_small_one() -> None:
    entries = grouped({"a1": [50, 0], "a2": [60, 0], "a3": [70, 0]} | {f"b{n}": [0, 1] for n in range(20)})
    assigned = assign(entries, val=0.1, test=0.1, seed=0)
    check_assigned(entries, assigned, ["a", "b"], "x")
    places = splits_of_groups(entries, assigned)
    assert (places["a1"], places["a2"], places["a3"]) == ({"test"}, {"val"}, {"train"})  # the nearest to 18


def test_another_seed_or_share_of_val_cuts_groups_as_it_should() -> None:
    entries = grouped({f"g{n}": [1 + n % 3, n % 2] for n in range(60)})

    def tests(val: float, seed: int) -> list[bool]:
        return [split == "test" for split in assign(entries, val=val, test=0.2, seed=seed)]

    assert tests(0.1, 0) == tests(0.3, 0) != tests(0.1, 1)


def test_val_is_cut_in_groups_from_a_given_train() -> None:
    entries = grouped({f"g{n}": [3, 3] for n in range(20)}, "train") + grouped({"other": [4, 4]}, "test")
    assigned = assign(entries, val=0.2, test=0.5, seed=0)
    places = splits_of_groups(entries, assigned)
    assert places.pop("other") == {"test"}
    assert sorted(map(sorted, places.values())) == [["train"]] * 16 + [["val"]] * 4


def test_a_class_of_too_few_groups_is_refused() -> None:
    entries = grouped({f"g{n}": [3, 0] for n in range(9)} | {"x": [0, 9], "y": [0, 9]})
    refuse(
        entries,
        ["cat", "dog"],
        r"class 'dog' has usable training images of 2 group\(s\), but 3 groups.*Add im",
    )
    check([*entries, *grouped({"z": [0, 1]})], ["cat", "dog"], "x")
    single = Entry(1, None, "alone", "alone")  # a picture without a group is one for itself
    check([*entries, single], ["cat", "dog"], "x")
    given = [*grouped({f"g{n}": [1, 1] for n in range(2)}, "train"), *grouped({"h": [1, 1]}, "test")]
    check(given, ["cat", "dog"], "x")


def test_groups_that_no_cut_fits_are_refused() -> None:
    pairs = {"ab": [1, 1, 0], "bc": [0, 1, 1], "ca": [1, 0, 1]}  # two parts would need each class in both
    entries = grouped(pairs, "train") + grouped({"t": [1, 1, 1]}, "test")
    check(entries, ["a", "b", "c"], "x")
    with pytest.raises(InputError, match=r"^x: no way was found to keep groups whole.* in val.*in the table"):
        check_assigned(entries, assign(entries, val=0.3, test=0.3, seed=0), ["a", "b", "c"], "x")


def test_unlabelled_pictures_of_a_held_out_group_are_found() -> None:
    labelled = [Entry(0, split, split, split, f"in {split}") for split in SPLITS]
    bare = [Entry(NO_LABEL, UNLABELLED, g, g, g) for g in ("in train", "in val", "in test", "new", "")]
    entries = [*labelled, *bare, Entry(0, "test", "t", "t", "")]
    assert held_out(entries, [entry.split or "" for entry in entries]) == {4, 5}
