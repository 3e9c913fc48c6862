"""Numbers of parameters as published."""

import pytest
import torch

from pipeline.nets import build
from pipeline.taps.tapped import Tapped


def parameters(name: str, classes: int) -> int:
    with torch.device("meta"):  # shapes only: nothing is computed
        return sum(parameter.numel() for parameter in build(name, classes).parameters())


# Millions as printed for CIFAR-100 in the tables of CRD (Tian et al., 2020), SemCKD (Chen et al., 2021) and
# later papers, and the exact number
CIFAR100 = {
    "resnet8": ("0.08", 83_892),
    "resnet14": ("0.18", 181_108),
    "resnet20": ("0.28", 278_324),
    "resnet26": ("0.38", 375_540),
    "resnet32": ("0.47", 472_756),
    "resnet44": ("0.67", 667_188),
    "resnet56": ("0.86", 861_620),
    "resnet110": ("1.74", 1_736_564),
    "resnet8x4": ("1.23", 1_233_540),
    "resnet32x4": ("7.43", 7_433_860),
    "wrn_16_1": ("0.18", 180_916),
    "wrn_16_2": ("0.70", 703_284),
    "wrn_40_1": ("0.57", 569_780),
    "wrn_40_2": ("2.26", 2_255_156),
    "vgg8": ("3.97", 3_965_028),
    "vgg11": ("9.28", 9_277_284),
    "vgg13": ("9.46", 9_462_180),
    "mobilenetv2": ("0.81", 812_836),
    "shufflenetv1": ("0.95", 949_258),
    "shufflenetv2": ("1.36", 1_355_528),
}


@pytest.mark.parametrize("name", CIFAR100)
def test_numbers_are_those_of_the_cifar_100_tables(name: str) -> None:
    millions, exact = CIFAR100[name]
    assert parameters(name, 100) == exact
    assert f"{exact / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    ("name", "classes", "printed"),
    [
        ("vgg16", 10, "14.73"),  # CIFAR-10 model zoos
        ("vgg19", 10, "20.04"),
        ("densenet121", 10, "6.96"),
        ("mobilenet", 1000, "4.23"),  # Howard et al., 2017, tables 6 and 7: 4.2, 2.6, 1.3 and 0.5 million
        ("mobilenet_x0.75", 1000, "2.59"),
        ("mobilenet_x0.5", 1000, "1.33"),
        ("mobilenet_x0.25", 1000, "0.47"),
        # SRM (Tran et al., 2021): 5.1 million on the transfer sets, 2.2 at width 0.66 on CIFAR-100
        ("allcnn", 200, "5.06"),
        ("allcnn_stem7", 200, "5.08"),  # SRM, section 4.2: 5.1
        ("allcnn_x0.66", 100, "2.18"),
        # the README of EfficientNet-Lite: 4.7, 5.4 and 6.1 million
        ("efficientnet_lite0", 1000, "4.65"),
        ("efficientnet_lite1", 1000, "5.42"),
        ("efficientnet_lite2", 1000, "6.09"),
    ],
)
def test_numbers_are_those_of_other_tables(name: str, classes: int, printed: str) -> None:
    assert f"{parameters(name, classes) / 1e6:.2f}" == printed


@pytest.mark.parametrize(
    ("name", "published", "stem_of_the_imagenet_form", "stem_here"),
    [
        # torchvision's table of weights. The stem is 3 x 3 there, and 1 x 1 here
        ("shufflenetv2", 2_278_604, 3 * 24 * 9, 3 * 24),
        ("shufflenetv2_x0.5", 1_366_792, 3 * 24 * 9, 3 * 24),
        ("densenet121", 7_978_856, 3 * 64 * 49 + 2 * 64, 3 * 64 * 9),  # 7 x 7 and a norm there
    ],
)
def test_only_the_stem_differs_from_the_imagenet_form(
    name: str, published: int, stem_of_the_imagenet_form: int, stem_here: int
) -> None:
    assert parameters(name, 1000) == published - stem_of_the_imagenet_form + stem_here


@pytest.mark.parametrize(
    ("name", "published"), [("torchvision:resnet18", 11_689_512), ("torchvision:mobilenet_v2", 3_504_872)]
)
def test_numbers_of_torchvision_networks_are_its_own(name: str, published: int) -> None:
    assert parameters(name, 1000) == published


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("mobilenet_x1", "mobilenet"),
        ("mobilenetv2_x0.5", "mobilenetv2"),
        ("allcnn_x1.0", "allcnn"),
        ("wrn_016_2", "wrn_16_2"),
        ("resnet8_x1", "resnet8"),
        ("resnet32x4_x1.0", "resnet32x4"),
    ],
)
def test_a_width_may_be_written_out(name: str, same: str) -> None:
    assert parameters(name, 10) == parameters(same, 10)


def test_a_thinner_resnet_has_the_share_of_its_channels_in_every_layer() -> None:
    full, thin = (build(name, 10) for name in ("resnet14", "resnet14_x0.67"))
    for whole, part in zip(full.modules(), thin.modules(), strict=True):
        if isinstance(whole, torch.nn.Conv2d):
            assert isinstance(part, torch.nn.Conv2d)
            assert part.out_channels == {16: 10, 32: 21, 64: 42}[whole.out_channels]


# Ioffe & Szegedy, 2015, figure 5: inputs, 1x1, 3x3 reduced, 3x3, double reduced, double, projection, outputs
FIGURE_5 = """
192 64 64 64 64 96 32 256
256 64 64 96 64 96 64 320
320 0 128 160 64 96 0 576
576 224 64 96 96 128 128 576
576 192 96 128 96 128 128 576
576 160 128 160 128 160 96 576
576 96 128 192 160 192 96 576
576 0 128 192 192 256 0 1024
1024 352 192 320 160 224 128 1024
1024 352 192 320 192 224 128 1024
"""


def test_inception_bn_has_the_layers_of_its_paper() -> None:
    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs  # with the scale and shift of its norm

    expected = conv(3, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3) + 1024 * 1000 + 1000
    for row in FIGURE_5.split("\n")[1:-1]:
        inputs, plain, reduced, wide, first, twice, projected, outputs = map(int, row.split())
        expected += conv(inputs, plain, 1) + conv(inputs, reduced, 1) + conv(reduced, wide, 3)
        expected += conv(inputs, first, 1) + conv(first, twice, 3) + conv(twice, twice, 3)
        expected += conv(inputs, projected, 1)
        assert plain + wide + twice + (projected or inputs) == outputs
    assert parameters("inception_bn", 1000) == expected
    net = build("inception_bn", 5).eval()
    maps = Tapped(net, torch.zeros(1, 3, 224, 224))(torch.zeros(1, 3, 224, 224)).maps
    shapes = [tuple(x.shape[1:]) for x in maps.values()]
    assert shapes == [(192, 56, 56), (320, 28, 28), (576, 14, 14), (1024, 7, 7)]
    pools = [
        type(m).__name__ for m in net.modules() if isinstance(m, torch.nn.AvgPool2d | torch.nn.MaxPool2d)
    ]
    mean, most = "AvgPool2d", "MaxPool2d"
    assert pools == [most, most, mean, mean, most, mean, mean, mean, mean, most, mean, most]
