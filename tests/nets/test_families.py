"""Each family is the network that its name says, not only in the number of parameters."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.nets import build
from pipeline.nets.efficientnet_lite import EfficientNetLite
from pipeline.nets.layers import Chain, ChannelShuffle

# channels x size of the map at every tap, for a 32 x 32 image
MAPS = {
    "resnet20": ["16x32", "16x32", "32x16", "64x8"],
    "resnet8x4": ["32x32", "64x32", "128x16", "256x8"],
    "wrn_16_2": ["16x32", "32x32", "64x16", "128x8"],
    "vgg8": ["64x32", "128x16", "256x8", "512x4", "512x4"],
    "mobilenet_x0.5": ["16x32", "64x16", "128x8", "256x4", "512x2"],
    "mobilenetv2": ["16x16", "12x16", "16x8", "48x4", "160x2"],
    "shufflenetv1": ["24x32", "240x16", "480x8", "960x4"],
    "shufflenetv2": ["24x32", "116x16", "232x8", "464x4"],
    "densenet121": ["64x32", "256x32", "512x16", "1024x8", "1024x4"],
    "efficientnet_lite0": ["32x16", "24x8", "40x4", "112x2", "320x1"],
    "efficientnet_lite2": ["32x16", "24x8", "48x4", "120x2", "352x1"],
    "allcnn_x0.66": ["63x32", "63x16", "126x8", "168x4", "253x4"],
    "allcnn_stem7_x0.66": ["63x16", "63x4", "126x2", "168x1", "253x1"],
}


def own(name: str, classes: int = 10) -> Chain | EfficientNetLite:
    torch.manual_seed(0)
    net = build(name, classes)
    assert isinstance(net, Chain | EfficientNetLite)
    return net.eval()


@pytest.mark.parametrize("name", MAPS)
def test_maps_have_the_shapes_of_the_papers(name: str) -> None:
    seen: list[str] = []
    with torch.device("meta"):
        net = own(name)
        for path in net.taps.values():
            net.get_submodule(path).register_forward_hook(
                lambda module, args, output: seen.append(f"{output.shape[1]}x{output.shape[3]}")
            )
        net(torch.empty(1, 3, 32, 32))
    assert seen == MAPS[name]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_shuffle_is_that_of_torch(groups: int) -> None:
    maps = torch.arange(2 * 12 * 3 * 3).view(2, 12, 3, 3).float()
    assert torch.equal(ChannelShuffle(groups)(maps), nn.ChannelShuffle(groups)(maps))


@pytest.mark.parametrize("name", ["wrn_16_1", "densenet121"])
def test_the_tap_of_a_part_reads_the_end_of_that_part(name: str) -> None:
    """Where blocks activate first, the tap is at the start of the next part, and only a norm is between."""
    net = own(name)
    ends: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    for part, path in net.taps.items():
        net.get_submodule(part).register_forward_hook(
            lambda module, args, output, part=part: ends.update({part: output})
        )
        net.get_submodule(path).register_forward_hook(
            lambda module, args, output, part=part: maps.update({part: output})
        )
    with torch.no_grad():
        net(torch.randn(2, 3, 16, 16))
    assert ends.keys() == maps.keys() == net.taps.keys()
    for part, end in ends.items():  # an untrained norm in eval mode only divides by sqrt(1 + eps)
        torch.testing.assert_close(maps[part], end.relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("mobilenet", 569), ("mobilenet_x0.75", 325), ("mobilenet_x0.5", 149), ("mobilenet_x0.25", 41)],
)
def test_mobilenets_multiply_as_often_as_published(name: str, millions: int) -> None:
    """Howard et al., 2017, table 6, at 224 pixels. Their stem halves the image; ours does not, so 112."""
    assert round(multiplications(name, 1000, 112) / 1e6) == millions


def test_allcnn_for_images_of_224_multiplies_about_as_often_as_srm_says() -> None:
    """Section 4.2: 1.35 GFLOPs. The text names no layers; without the large stem it would be 18."""
    assert multiplications("allcnn_stem7", 200, 224) / 1e9 == pytest.approx(1.304, abs=0.001)
    assert multiplications("allcnn", 200, 224) / 1e9 > 17


def multiplications(name: str, classes: int, size: int) -> int:
    total = 0

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.shape[2:].numel() * module.weight.numel()

    with torch.device("meta"):
        net = own(name, classes)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        net(torch.empty(1, 3, size, size))
    return total


STEMS = {"shufflenetv2_x0.5": (24, ("conv1.",)), "densenet121": (64, ("features.conv0.", "features.norm0."))}


@pytest.mark.parametrize(
    ("name", "torchvisions"), [("shufflenetv2_x0.5", "shufflenet_v2_x0_5"), ("densenet121", "densenet121")]
)
def test_with_the_same_weights_it_answers_as_the_network_of_torchvision(name: str, torchvisions: str) -> None:
    """Behind the stem. A mistake in the order of branches, concatenations or shuffles shows here."""
    channels, stem = STEMS[name]
    ours, theirs = own(name), build(f"torchvision:{torchvisions}", 10).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # norms that differ from channel to channel
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    given = [value for key, value in theirs.state_dict().items() if not key.startswith(stem)]
    keys = [key for key in ours.state_dict() if not key.startswith("stem.")]
    ours.load_state_dict(ours.state_dict() | dict(zip(keys, given, strict=True)))
    maps = torch.randn(2, channels, 16, 16)
    with torch.no_grad():
        answer, expected = nn.Sequential(*list(ours.children())[1:])(maps), _behind_the_stem(theirs, maps)
    assert expected.std() > 1e-3
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def _behind_the_stem(net: nn.Module, maps: Tensor) -> Tensor:
    if hasattr(net, "features"):
        for name, part in net.get_submodule("features").named_children():
            if not name.endswith("0"):  # conv0, norm0, relu0 and pool0 are the stem
                maps = part(maps)
        maps, classifier = maps.relu(), "classifier"
    else:
        for name in ("stage2", "stage3", "stage4", "conv5"):
            maps = net.get_submodule(name)(maps)
        classifier = "fc"
    logits: Tensor = net.get_submodule(classifier)(maps.mean((2, 3)))
    return logits
