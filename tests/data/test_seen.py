import numpy as np
from PIL import Image

from pipeline.data.seen import Seen, images_at_once

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), dtype=np.uint8)


def test_images_of_the_same_size_are_the_array_itself() -> None:
    seen = Seen(IMAGES, 20)
    assert np.array_equal(seen[np.array([3, 1])], IMAGES[[3, 1]])
    assert (seen.shape, seen.dtype, len(seen)) == (IMAGES.shape, IMAGES.dtype, 9)


def test_images_of_another_size_are_resized_by_pillow_when_they_are_read() -> None:
    for channels in (3, 1):
        images = IMAGES[..., :channels]
        seen = Seen(images, 12)
        assert seen.shape == (9, 12, 12, channels)
        found = seen[np.array([4, 8])]
        for row, view in zip((4, 8), found, strict=True):
            image = Image.fromarray(images[row] if channels == 3 else images[row, :, :, 0])
            truth = np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR)).reshape(12, 12, channels)
            assert np.array_equal(view, truth)
        assert np.array_equal(seen[2:5], seen[np.array([2, 3, 4])])
        assert seen[5:5].shape == (0, 12, 12, channels)


def test_fewer_large_images_are_answered_at_once() -> None:
    assert [images_at_once(size, most=512) for size in (8, 32, 64, 128, 224, 1024)] == [
        512,
        512,
        512,
        128,
        41,
        16,
    ]
