"""What training sees, as one picture: some training images, each whole and then in some of its views."""

from itertools import islice, zip_longest

import numpy as np
import torch
from PIL import Image

from pipeline.data.augment import AugmentConfig
from pipeline.data.sheet import GAP, TILE, tile
from pipeline.data.store import Store
from pipeline.data.views import Rows, Views

IMAGES = 12
VIEWS = 7


def views_sheet(store: Store, cfg: AugmentConfig) -> Image.Image:
    """A row for each of some training images, of different classes if there are enough."""
    rows = _one_of_each_class(store)
    mean, places = torch.tensor(store.mean, dtype=torch.float32), torch.arange(len(rows))
    views = Views(store.images, rows, cfg, seed=0, mean=mean, device=torch.device("cpu"))
    columns = [np.asarray(store.images[rows])]
    columns += [_pixels(views, Rows(places, places), number, store.size) for number in range(VIEWS)]
    page = Image.new("RGB", (len(columns) * (TILE + GAP) + 3 * GAP, len(rows) * (TILE + GAP) + GAP), "white")
    for x, images in enumerate(columns):
        for y, pixels in enumerate(images):
            left = GAP + x * (TILE + GAP) + (2 * GAP if x else 0)  # the whole images stand apart
            page.paste(tile(pixels), (left, GAP + y * (TILE + GAP)))
    return page


def _one_of_each_class(store: Store) -> np.ndarray:
    """Rows of training images: the first one of each class, then the second one, until there are enough."""
    train = store.indices("train")
    labels = store.labels[train]
    of_classes = (train[labels == label][:IMAGES] for label in np.unique(labels))
    in_turns = (row for rows in zip_longest(*of_classes) for row in rows if row is not None)
    return np.array(list(islice(in_turns, IMAGES)))


def _pixels(views: Views, places: Rows, number: int, size: int) -> np.ndarray:
    pictures = views.pictures(places, number, size).permute(0, 2, 3, 1)
    return pictures.round().clamp(0, 255).to(torch.uint8).numpy()
