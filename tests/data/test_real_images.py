"""A large folder of real pictures, {train,test}/CLASS/*.jpg, if the variable DISTIL_IMAGES names one."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import decode
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import Store

ROOT = os.environ.get("DISTIL_IMAGES", "")


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="DISTIL_IMAGES names no folder of images")
def test_a_large_folder_is_prepared_quickly_and_faithfully(tmp_path: Path) -> None:
    started = time.perf_counter()
    manifest = prepare(DataConfig(source="folder", root=ROOT, size=32), tmp_path)
    seconds = time.perf_counter() - started
    store = Store.open(tmp_path)
    lines = (tmp_path / "files.csv").read_text().splitlines()[1:]
    for row in range(0, len(lines), 997):
        path = lines[row].split(",", 4)[4]
        assert np.array_equal(store.images[np.array([row])][0], decode.decode(Path(ROOT) / path, 32, 3))
    assert sum(manifest["splits"].values()) == len(store.images) == len(lines)
    assert len(store.images) / seconds > 500  # images a second; about 2,500 on two cores
