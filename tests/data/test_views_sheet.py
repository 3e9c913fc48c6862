import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.augment import AugmentConfig
from pipeline.data.prepare import prepare
from pipeline.data.sheet import GAP, TILE
from pipeline.data.sources import DataConfig
from pipeline.data.store import Store
from pipeline.data.views_sheet import IMAGES, VIEWS, views_sheet


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    prepare(DataConfig(source="digits", size=8), folder)
    return Store.open(folder)


def tiles(store: Store, cfg: AugmentConfig) -> np.ndarray:
    """images x columns x height x width x 3."""
    page = np.asarray(views_sheet(store, cfg))
    starts = [GAP + x * (TILE + GAP) + (2 * GAP if x else 0) for x in range(1 + VIEWS)]
    rows = [GAP + y * (TILE + GAP) for y in range(IMAGES)]
    return np.stack([[page[y : y + TILE, x : x + TILE] for x in starts] for y in rows])


def test_unchanged_views_are_the_images_themselves(store: Store) -> None:
    found = tiles(store, AugmentConfig(pad=0, flip=0))
    assert (found == found[:, :1]).all()
    assert len({hashlib.sha256(row[0].tobytes()).digest() for row in found}) == IMAGES


def test_views_show_the_settings(store: Store) -> None:
    still, moved = tiles(store, AugmentConfig(pad=0, flip=0)), tiles(store, AugmentConfig(preset="strong"))
    assert (still[:, 0] == moved[:, 0]).all()
    assert all((moved[y, x] != still[y, x]).any() for y in range(IMAGES) for x in range(1, 1 + VIEWS))
    again = tiles(store, AugmentConfig(preset="strong"))
    assert (moved == again).all()


def test_the_first_images_are_of_different_classes(store: Store) -> None:
    from pipeline.data.views_sheet import _one_of_each_class

    rows = _one_of_each_class(store)
    assert len(set(store.labels[rows[:10]])) == 10
    assert set(rows) <= set(store.indices("train").tolist())


def test_the_page_is_the_same_for_the_same_settings(store: Store, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        views_sheet(store, AugmentConfig(preset="standard", mixup=1.0)).save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
