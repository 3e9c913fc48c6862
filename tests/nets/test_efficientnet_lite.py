"""EfficientNet-Lite against timm's, which was ported from TensorFlow."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from pipeline.export import onnx_format, torchscript
from pipeline.export.deployable import Deployable
from pipeline.nets import build

NAMES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
@torch.no_grad()
def test_it_is_the_network_of_timm(name: str) -> None:
    """Both have the same tensors in the same order, under other names."""
    torch.manual_seed(0)
    net, other = build(name, 5).eval(), timm.create_model(f"tf_{name}", num_classes=5).eval()
    for norm in norms_of(net):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        assert norm.running_var is not None
        nn.init.uniform_(norm.running_var, 0.001, 2)  # so that epsilon matters
        nn.init.normal_(norm.bias)
    other.load_state_dict(dict(zip(other.state_dict(), net.state_dict().values(), strict=True)))
    for size in (64, 75):
        images = torch.randn(2, 3, size, size)
        logits = other(images)
        torch.testing.assert_close(net(images), logits, rtol=1e-3, atol=1e-4 * logits.abs().max().item())


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "dropout"), list(zip(NAMES, (0.2, 0.2, 0.3), strict=True)))
def test_what_matters_in_training_alone_is_as_published(name: str, dropout: float) -> None:
    with torch.device("meta"):
        net = build(name, 5)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [dropout]
    assert {norm.momentum for norm in norms_of(net)} == {0.01}  # TensorFlow's 0.99


def test_its_tensors_have_the_names_of_the_packages_with_weights() -> None:
    with torch.device("meta"):
        state = build(NAMES[0], 1000).state_dict()
    assert len([key for key in state if not key.endswith("num_batches_tracked")]) == 247
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    assert [key for key in state if key.startswith("_blocks.0.")] == [
        f"_blocks.0.{layer}.{name}" for layer in layers for name in (norm if "bn" in layer else ("weight",))
    ]
    whole = {"_expand_conv", "_bn0", *layers}
    assert {key.split(".")[2] for key in state if key.startswith("_blocks.15.")} == whole
    others = {key.split(".")[0] for key in state}
    assert others == {"_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 35])
def test_padding_is_exported_with_the_size(tmp_path: Path, size: int) -> None:
    torch.manual_seed(0)
    model = Deployable(build(NAMES[0], 4), (0.5,) * 3, (0.25,) * 3).eval().requires_grad_(False)
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    onnx_format.write(model, tmp_path / "x.onnx", size=size, channels=3, classes=4, metadata={"schema": 2})
    torchscript.write(model, tmp_path / "x.ts", size=size, channels=3, metadata={})
    expected = model(images)[0]
    for load, file in ((onnx_format.load, "x.onnx"), (torchscript.load, "x.ts")):
        logits, _ = load(tmp_path / file)(images.numpy())
        torch.testing.assert_close(torch.as_tensor(logits), expected, rtol=1e-4, atol=1e-4)
