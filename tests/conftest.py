import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole graph first: it is long, and one worker runs it while the other does all else."""
    items.sort(key=lambda item: item.path.name != "test_repro.py")
