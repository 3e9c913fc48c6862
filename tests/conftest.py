import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the whole graph first: it takes longest, and the other worker does all else (`--dist loadfile`)."""
    items.sort(key=lambda item: item.path.name != "test_repro.py")
