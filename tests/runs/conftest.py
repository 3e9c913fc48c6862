"""Small runs with stored answers of their teacher."""

import numpy as np
import pytest
from answered import SETTINGS
from small_runs import SmallRuns

from pipeline.runs import answer_file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    small = SmallRuns(tmp_path_factory.mktemp("answers"), SETTINGS, images=45)
    small.train_teacher("big")
    small.train_teacher("larger")
    return small


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_file, "PRECISION", np.dtype(np.float32))
