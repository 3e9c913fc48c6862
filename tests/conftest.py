import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole graph first: it takes longest, and one worker runs it (`--dist loadfile`) while the other does all else."""
    items.sort(key=lambda item: item.path.name != "test_repro.py")
