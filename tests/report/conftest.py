from pathlib import Path

import pytest
from fabricated import fabricate


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")
