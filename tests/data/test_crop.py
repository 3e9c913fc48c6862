"""Shifts and mirrors: image by image on a CPU, all at once on a GPU, and the same bits."""

import pytest
import torch

from pipeline.data.augment import AugmentConfig
from pipeline.data.crop import _copied, _gathered, shifted

FILL = torch.tensor([113.7, 99.1, 3.3]).view(1, 3, 1, 1)


@pytest.mark.parametrize("side", [5, 9, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_both_ways_give_the_same_bits(side: int, channels: int) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (200, side, side, channels), dtype=torch.uint8)
    down, right = torch.randint(-side - 1, side + 2, (2, 200))
    moves = (pixels, down, right, torch.rand(200) < 0.5, FILL[:, :channels])
    one, other = _copied(*moves), _gathered(*moves)
    assert torch.equal(one, other)
    assert one.stride() == other.stride()
    assert one.dtype == torch.float32


@pytest.mark.parametrize("pad", [0, 3])
def test_a_whole_image_is_shown_unless_it_is_shifted(pad: int) -> None:
    pixels = torch.randint(0, 256, (50, 6, 6, 3), dtype=torch.uint8)
    views = shifted(pixels, torch.arange(50), 0, 0, AugmentConfig(pad=pad, flip=0.0), FILL)
    is_whole = (views == pixels.permute(0, 3, 1, 2)).all((1, 2, 3))
    assert is_whole.float().mean() == 1 if pad == 0 else is_whole.float().mean() < 0.3
    assert views.is_contiguous(memory_format=torch.channels_last)
