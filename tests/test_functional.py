import pytest
import torch
import torch.nn.functional as F

from pipeline.functional import pool_to


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 12), (4, 6), (8, 3), (1, 1), (2, 12), (3, 5)])
def test_pooling_is_torchs_adaptive_pooling(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    maps = torch.randn(2, 3, 8, 12, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(2, 3, *size, dtype=torch.float64)
    values, gradients = zip(
        *(
            (pooled, *torch.autograd.grad((pooled * weights).sum(), maps))
            for pooled in (pool_to(maps, *size), F.adaptive_avg_pool2d(maps, size))
        ),
        strict=True,
    )
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])
