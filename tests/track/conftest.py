from pathlib import Path

import pytest
from tracked import make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a project with the records of three runs."""
    return make_project(tmp_path / "my project", monkeypatch)
