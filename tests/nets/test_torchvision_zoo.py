"""Networks of torchvision."""

import pytest
import torch
from torch import nn

from pipeline.nets import build
from pipeline.nets.torchvision_zoo import available
from pipeline.taps.tapped import Tapped


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "swin_t"])
def test_a_network_has_the_given_classes_and_channels(name: str, channels: int) -> None:
    net = build(f"torchvision:{name}", 7, channels).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, channels, 64, 64))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not [path for path, module in net.named_modules() if getattr(module, "inplace", False)]


def test_another_number_of_channels_changes_the_first_layer_only() -> None:
    grey, colour = build("torchvision:resnet18", 5, 1), build("torchvision:resnet18", 5, 3)
    weights, others = grey.state_dict(), colour.state_dict()
    assert weights.keys() == others.keys()
    assert [key for key in weights if weights[key].shape != others[key].shape] == ["conv1.weight"]
    first, other = grey.get_submodule("conv1"), colour.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(other, nn.Conv2d)
    assert (first.stride, first.padding, first.bias) == (other.stride, other.padding, other.bias)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_the_maps_of_a_resnet_are_its_stem_and_the_ends_of_its_stages(name: str) -> None:
    net = build(f"torchvision:{name}", 7, 3)
    images = torch.randn(2, 3, 64, 64)
    answer = Tapped(net.eval(), images)(images)
    assert [(key, value.shape[2]) for key, value in answer.maps.items()] == [
        *(("stem", 32), ("stage1", 16), ("stage2", 8), ("stage3", 4), ("stage4", 2)),
    ]
    assert answer.body == ["stage1", "stage2", "stage3", "stage4"]
    for key, value in answer.maps.items():
        assert torch.equal(value, answer.preactivations[key].relu())
    assert torch.allclose(answer.maps["stage4"].mean((2, 3)), answer.pooled)
    found: list[torch.Tensor] = []
    net.get_submodule("layer1").register_forward_hook(lambda module, args, output: found.append(output))
    net(images)
    assert torch.equal(found[0], answer.maps["stage1"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_outputs_return_logits_only(name: str, channels: int) -> None:
    with torch.device("meta"):
        logits = build(f"torchvision:{name}", 7, channels).train()(torch.empty(2, channels, 299, 299))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in available() if not name.startswith("regnet") or name.endswith("400mf")]
)
def test_all_of_torchvision_can_be_built(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    # shapes only; but a regnet computes its widths with tensors, and small ones are tested instead of all
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        for channels in (1, 3):
            net = build(f"torchvision:{name}", 7, channels)
            assert net(torch.empty(2, channels, size, size)).shape == (2, 7)
            assert not [path for path, module in net.named_modules() if getattr(module, "inplace", False)]
