from pathlib import Path

import numpy as np
import pytest
from data.folders import tree
from world import save_pictures

from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.stand_in import SAMPLE, Repeated, stand_in
from pipeline.data.store import Store


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_it_has_the_counts_and_shapes_of_the_store(source: str, tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", 90, size=10)
    cfg = DataConfig(source=source, root=str(tmp_path / "images"), size=8, val=0.2, test=0.3)
    prepare(cfg, tmp_path / "store")
    found, store = stand_in(cfg), Store.open(tmp_path / "store")
    assert found.store.manifest["splits"] == store.manifest["splits"]
    assert found.store.images.shape == store.images.shape
    assert found.store.classes == store.classes
    for split in ("train", "val", "test"):
        ours, theirs = (np.bincount(each.labels[each.indices(split)]) for each in (found.store, store))
        assert ours.tolist() == theirs.tolist()
    assert found.store.mean == pytest.approx(store.mean, abs=0.05)
    assert found.store.std == pytest.approx(store.std, abs=0.05)
    assert found.sampled == min(SAMPLE, len(store.labels))
    assert 0 < found.seconds < 0.1


def test_a_picture_that_cannot_be_decoded_is_left_to_prepare(tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 3, "dog": 3})
    for file in root.rglob("*.png"):
        file.write_bytes(b"no picture")
    found = stand_in(DataConfig(source="folder", root=str(root), size=8))
    assert len(found.store.images) == 6
    assert found.store.images[:][0].std() > 10


def test_a_few_images_stand_for_many() -> None:
    few = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    many = Repeated(few, 8)
    assert many[np.array([0, 4, 7])].ravel().tolist() == [0, 1, 1]
    assert many[2:5].ravel().tolist() == [2, 0, 1]
    assert many[7].shape == (1, 1, 1)
    assert len(many) == 8
