from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.export.deployable import Deployable, plain_pools
from pipeline.functional import normalise


def test_it_is_the_network_on_normalised_pixels(world: Any, images: np.ndarray) -> None:
    net = world.make()
    logits, probabilities = Deployable(net, world.mean, world.std).outputs(images)
    with torch.no_grad():
        want = net(normalise(torch.tensor(images), world.mean, world.std))
    assert np.array_equal(logits, want.numpy())
    assert np.allclose(probabilities, want.softmax(1).numpy())
    assert np.array_equal(Deployable(net, world.mean, world.std).predict(images), logits)


def test_mean_and_std_are_buffers() -> None:
    deployed = Deployable(nn.Flatten(), (0.5,), (0.25,))
    assert [name for name, _ in deployed.named_buffers()] == ["mean", "std"]
    assert list(deployed.parameters()) == []
    # 255 with mean 1/2 and standard deviation 1/4 is 2
    assert deployed(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))[0].item() == pytest.approx(2)


def test_it_reads_pixels_mapped_read_only_from_disk(world: Any, images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    deployed = Deployable(world.make(), world.mean, world.std)
    assert np.array_equal(deployed.predict(mapped[:5]), deployed.predict(images[:5]))


def test_exact_is_the_same_network_in_float64(world: Any, images: np.ndarray) -> None:
    deployed = Deployable(world.make(), world.mean, world.std)
    exact, logits = deployed.exact(images), deployed.predict(images)
    assert exact.dtype == np.float64
    assert 0 < np.abs(exact - logits).max() < 1e-5
    assert {p.dtype for p in deployed.parameters()} == {torch.float32}


def test_it_refuses_training_mode_and_other_types(world: Any, images: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=r"\.eval\(\)"):
        Deployable(world.make().train(), world.mean, world.std).predict(images)
    net = world.make()
    net.norm.train()  # one layer is enough
    with pytest.raises(AssertionError, match=r"\.eval\(\)"):
        Deployable(net, world.mean, world.std).predict(images)
    with pytest.raises(AssertionError, match="float32"):
        Deployable(world.make(), world.mean, world.std).predict(images.astype(np.float32))


def test_pools_to_one_pixel_become_means_with_the_same_answer(world: Any, images: np.ndarray) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d((1, 1))), nn.Flatten(), nn.Linear(8, 6)
    ).eval()
    before = Deployable(net, world.mean, world.std).predict(images)
    assert not [m for m in plain_pools(net).modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
    np.testing.assert_allclose(Deployable(net, world.mean, world.std).predict(images), before, atol=1e-6)
    other = nn.Sequential(nn.AdaptiveAvgPool2d(2))
    assert isinstance(plain_pools(other)[0], nn.AdaptiveAvgPool2d)  # type: ignore[index]
