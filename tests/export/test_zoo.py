"""Every family of networks passes the gates in every format."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import nets
from pipeline.export import int8, onnx_format, parity, torchscript
from pipeline.export.deployable import Deployable, plain_pools

FAMILIES = (
    *("allcnn", "densenet121", "mobilenet_x0.25", "mobilenetv2", "resnet8", "resnet8x4", "shufflenetv1"),
    *("shufflenetv2_x0.5", "vgg8", "wrn_16_1", "torchvision:mobilenet_v3_small"),
    *("torchvision:efficientnet_b0", "torchvision:squeezenet1_1"),
)


def as_if_trained(name: str, images: np.ndarray) -> Deployable:
    """A network with the statistics of real activations, and logits as large as those of a trained one."""
    torch.manual_seed(0)
    net = nets.build(name, classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.momentum = None  # the mean over all batches
    deployed = Deployable(net.train(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    with torch.no_grad():
        for _ in range(2):
            deployed(torch.tensor(images))
    net.eval().requires_grad_(False)
    deployed.eval()
    last = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    spread = float(np.ptp(deployed.predict(images), axis=0).mean())
    last.weight.mul_(10 / max(spread, 1e-3))
    return deployed


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name: str, world: Any, tmp_path: Path) -> None:
    size = 64 if name.startswith("torchvision:") else 32
    pictures = torch.from_numpy(world.pictures(3, 96)).permute(0, 3, 1, 2).float()
    large = nn.functional.interpolate(pictures, (size, size), mode="bicubic").clamp(0, 255).byte()
    images = np.ascontiguousarray(large.permute(0, 2, 3, 1).numpy())
    model = as_if_trained(name, images)
    exported = Deployable(plain_pools(copy.deepcopy(model.net)), model.mean.tolist(), model.std.tolist())
    onnx_format.write(
        exported, tmp_path / "x.onnx", size=size, channels=3, classes=10, metadata={"schema": 2}
    )
    same = parity.check(
        model.outputs, onnx_format.load(tmp_path / "x.onnx"), images, name="The ONNX file", exact=model.exact
    )
    assert same.agreement == 1
    torchscript.write(exported, tmp_path / "x.ts", size=size, channels=3, metadata={})
    parity.check(
        model.outputs,
        torchscript.load(tmp_path / "x.ts"),
        images,
        name="The TorchScript file",
        exact=model.exact,
    )
    int8.write(
        tmp_path / "x.onnx", tmp_path / "x.int8.onnx", images[:64], portable=False, metadata={"schema": 2}
    )
    run = onnx_format.load(tmp_path / "x.int8.onnx")
    # the weights are random, so the int8 file need not pass its gate
    quality = int8.compare(onnx_format.load(tmp_path / "x.onnx"), run, images[64:], np.zeros(32, np.int64))
    assert quality.images == 32
    assert int8.batch_faults(run, images[64:]) == []
