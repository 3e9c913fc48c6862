from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline import nets
from pipeline.analysis.gradcam import GAP, LINE, RIGHT, TILE, WRONG, grad_cam, side_by_side
from pipeline.functional import Input
from pipeline.taps.tapped import Tapped

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = ["dark", "bright"]


def tapped(
    name: str = "resnet8", *, size: int = 16, channels: int = 3, classes: int = 3
) -> tuple[Tapped, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randn(3, channels, size, size)
    own = Input(images.shape[3], MEAN[:channels], STD[:channels])
    return Tapped(nets.build(name, classes, channels=channels), images, input=own), images


def flat() -> nn.Sequential:
    """A network whose classifier has a weight for each place of the map."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 3)),
    )


def resnet() -> nn.Sequential:
    stem, *stages, pool, flatten, fc = nets.build("resnet8", 3).children()
    return nn.Sequential(nn.Sequential(stem, *stages), nn.Sequential(pool, flatten, fc))


@pytest.mark.parametrize("build", [flat, resnet])
def test_the_heat_equals_the_slow_loop(build: Callable[[], nn.Sequential]) -> None:
    torch.manual_seed(0)
    net, images = build().eval(), torch.randn(3, 3, 16, 16)
    found = grad_cam(Tapped(net, images, taps={"stage1": "0"}), images)
    body, head = net
    for n in range(3):
        x = body(images[n : n + 1]).detach().requires_grad_()
        logits = head(x)[0]
        predicted = int(logits.argmax())
        (gradient,) = torch.autograd.grad(logits[predicted], x)
        a, g = x[0].tolist(), gradient[0].tolist()
        side = len(a[0])
        weights = [sum(map(sum, channel)) / side**2 for channel in g]
        heat = [
            [max(0.0, sum(w * c[i][j] for w, c in zip(weights, a, strict=True))) for j in range(side)]
            for i in range(side)
        ]
        hottest = max(map(max, heat))
        expected = [[value / hottest for value in row] for row in heat]
        assert found.heat[n].tolist() == [pytest.approx(row, rel=1e-3, abs=1e-4) for row in expected]
        assert int(found.predicted[n]) == predicted
        assert found.probability[n].item() == pytest.approx(logits.softmax(0)[predicted].item(), rel=1e-5)


def test_the_network_and_the_images_do_not_change() -> None:
    net, images = tapped()
    net.net.train()
    before = {name: tensor.clone() for name, tensor in net.net.state_dict().items()}
    heat = grad_cam(net, images).heat
    assert torch.allclose(
        heat[1], grad_cam(net, images[1:2]).heat[0], atol=1e-4
    )  # other images do not matter
    assert all(torch.equal(before[name], tensor) for name, tensor in net.net.state_dict().items())
    assert all(module.training for module in net.net.modules())
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in net.net.parameters())
    frozen = net.net.requires_grad_(False)
    assert torch.equal(grad_cam(net, images).heat, heat)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_map_that_lowers_the_logit_has_no_heat() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    for parameter, value in zip(net.parameters(), (1.0, 0.0, -1.0, 5.0), strict=True):
        nn.init.constant_(parameter, value)
    images = torch.rand(1, 3, 4, 4)
    assert not grad_cam(Tapped(net, images, taps={"stage1": "1"}), images).heat.any()


@pytest.mark.parametrize(
    ("name", "size", "channels", "side"),
    [("vgg8", 8, 3, 2), ("wrn_10_1", 9, 1, 3), ("mobilenet_x0.25", 16, 3, 2)],
)
def test_the_deepest_map_with_more_than_one_pixel_is_used(
    name: str, size: int, channels: int, side: int
) -> None:
    net, images = tapped(name, size=size, channels=channels)
    heat = grad_cam(net, images).heat
    assert heat.shape == (3, side, side)
    assert heat.min() >= 0
    assert heat.max() <= 1


class Brightness(nn.Module):
    """Predicts `bright` if the image's mean is above grey, so it looks at the bright half."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.AvgPool2d(2)
        self.fc = nn.Linear(1, 2)
        self.fc.weight.data.copy_(torch.tensor([[-9.0], [9.0]]))
        self.fc.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.look(x).mean((1, 2, 3))[:, None])
        return logits


def brightness() -> Tapped:
    own = Input(8, MEAN, STD)
    return Tapped(Brightness(), torch.zeros(1, 3, 8, 8), taps={"stage1": "look"}, input=own)


def picture(
    tmp_path: Path, labels: list[int], networks: dict[str, Tapped], images: np.ndarray | None = None
) -> np.ndarray:
    if images is None:
        images = np.zeros((len(labels), 8, 8, 3), dtype=np.uint8)
        images[:, :, :4] = 255
        images[:, :, 4:] = 30
    out = tmp_path / "cam.png"
    side_by_side(
        {name: (net, CLASSES) for name, net in networks.items()},
        images,
        [CLASSES[label] for label in labels],
        out,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cam.png"]
    return np.asarray(Image.open(out)).astype(int)


def tile(page: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = GAP + LINE + row * (TILE + LINE + GAP), GAP + column * (TILE + GAP)
    return page[top : top + TILE, left : left + TILE]


def caption(page: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = GAP + LINE + row * (TILE + LINE + GAP) + TILE, GAP + column * (TILE + GAP)
    return page[top : top + LINE, left : left + TILE]


def has(part: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((part == colour).all(2).any())


def test_the_picture_has_the_image_and_the_heat_of_every_network(tmp_path: Path) -> None:
    page = picture(tmp_path, [1, 0], {"teacher": brightness(), "student": brightness()})
    assert page.shape[1] == GAP + 3 * (TILE + GAP)
    for row in (0, 1):
        plain = tile(page, row, 0)
        assert (plain[:, : TILE // 2] == 255).all()
        assert (plain[:, TILE // 2 :] == 30).all()
        for column in (1, 2):
            heated = tile(page, row, column)
            hot, cold = heated[TILE // 2, TILE // 8], heated[TILE // 2, -TILE // 8]
            assert hot.sum() > cold.sum() + 300
            assert hot[0] > hot[2] + 30  # yellow
    assert (page[:LINE] < 128).any(axis=(0, 2)).sum() > 30  # the names


def test_right_and_wrong_predictions_look_different(tmp_path: Path) -> None:
    page = picture(tmp_path, [1, 0], {"net": brightness()})  # both images are bright
    right, wrong = caption(page, 0, 1), caption(page, 1, 1)
    assert has(right, RIGHT)
    assert not has(right, WRONG)
    assert has(wrong, WRONG)
    assert not has(wrong, RIGHT)
    middle = (11, 4)
    assert tuple(right[middle]) == RIGHT  # a full dot
    assert tuple(wrong[middle]) == (255, 255, 255)  # an empty one


@pytest.mark.parametrize(("size", "channels"), [(9, 1), (300, 3)])
def test_odd_sizes_grey_images_and_long_names(tmp_path: Path, size: int, channels: int) -> None:
    net, _ = tapped(size=size, channels=channels, classes=2)
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, channels), dtype=np.uint8)
    page = picture(tmp_path, [0], {"a name\nthat is far too long for the room it has " * 3: net}, images)
    assert page.shape == (GAP + LINE + TILE + LINE + GAP + LINE, GAP + 2 * (TILE + GAP), 3)
    assert (page[:, -GAP:] == 255).all()
