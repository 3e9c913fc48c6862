"""The images of a store as a network sees them, outside of training: whole, at the network's own size."""

import numpy as np

from pipeline.data.decode import see
from pipeline.data.images import Images

PIXELS = 512 * 64 * 64  # that a network answers to at once, at most


class Seen:
    """Like `images` (uint8 N x H x W x C), but each image is resized when it is read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, images: Images, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.images), self.size, self.size, self.images.shape[3])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        pixels = np.asarray(self.images[rows])
        if pixels.shape[1] == self.size:
            return pixels
        views = np.empty((len(pixels), *self.shape[1:]), dtype=np.uint8)
        for view, image in zip(views, pixels, strict=True):
            view[:] = see(image, self.size)
        return views


def images_at_once(size: int, *, most: int) -> int:
    """To how many images of this side a network answers at once: to fewer large ones, to save memory."""
    return max(16, min(most, PIXELS // size**2))
