from experiments import growth
from experiments.growth import START, Size


def test_a_table_of_measured_sizes() -> None:
    *_, row = growth.table({"images": [Size(images=1300, pixels=8)]}, rounds=1).splitlines()
    assert row.startswith("| images | 1,300 |")
    assert row.count("|") == 7
    assert growth._row(
        "images", "5", [{"step": n, "epoch": n, "start": n, "memory": n} for n in (1.0, 3.0)]
    ) == ("| images | 5 | 2 [1, 3] | 2 [1, 3] | 2.0 [1.0, 3.0] | 2 [1, 3] |")


def test_larger_sizes_are_computed() -> None:
    half, whole = ({"step": a, "epoch": a, "start": 1.0, "memory": a} for a in (2.0, 5.0))  # 1 + area
    assert growth.of_twice_the_side(half, whole) == {
        "step": 17.0,
        "epoch": 17.0,
        "start": 1.0,
        "memory": 17.0,
    }
    one, two = ({"step": a, "epoch": a, "start": 1.0, "memory": 9.0} for a in (8.0, 5.0))  # 1 to send
    assert growth.of_more_processes(one, two) == {"step": 3.0, "epoch": 3.0, "start": 1.0, "memory": 9.0}


def test_one_size_grows_at_a_time() -> None:
    for name, (first, *larger) in growth.GROWTH.items():
        assert first == START
        for size in larger:
            assert getattr(size, name) > getattr(START, name)
            assert [key for key in vars(size) if getattr(size, key) != getattr(START, key)] == [name]


def test_the_store_is_as_large_as_it_says() -> None:
    store = growth.store(Size(images=1000, classes=7, pixels=9))
    assert len(store.images) == len(store.labels) == 1000 + 2 * growth.FEW
    assert set(store.labels) == set(range(7))
    assert store.images[:3].shape == (3, 9, 9, 3)
