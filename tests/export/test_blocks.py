from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.export import int8, onnx_format
from pipeline.export.blocks import block_first_layer
from pipeline.export.deployable import Deployable

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Two(nn.Module):
    def __init__(self, first: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.second = first, act, nn.Conv2d(first.out_channels, 24, 3, 2, 1)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.relu(self.second(self.act(self.first(x)))).mean((2, 3)))
        return logits


class Twice(Two):
    """Two layers read the normalised picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean((2, 3)).sum(1, keepdim=True)


class Split(Two):
    """Two layers read the answer of the first."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = torch.relu(self.second(self.act(first) + torch.sigmoid(first)))
        logits: Tensor = self.classifier(second.mean((2, 3)))
        return logits


def written(place: Path, net: nn.Module, images: np.ndarray, *, blocks: bool) -> Any:
    """The int8 file of a network, with its first layer as it was, or in blocks if possible.

    Its weights have 7 bits. With 8, CPUs without VNNI saturate some sums of two products, and which two are
    summed depends on the order of the channels. With 7 no such sum can saturate: the integers are the same on
    every CPU.
    """
    import onnx

    channels = images.shape[3]
    model = Deployable(net.eval().requires_grad_(False), MEAN[:channels], STD[:channels]).eval()
    onnx_format.write(
        model, place / "float.onnx", size=images.shape[1], channels=channels, classes=10, metadata={}
    )
    with pytest.MonkeyPatch.context() as patch:
        if not blocks:
            patch.setattr(int8, "block_first_layer", lambda graph: False)
        int8.write(place / "float.onnx", place / "int8.onnx", images, portable=True, metadata={})
    return onnx.load(place / "int8.onnx")


def noise(size: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, size, size, channels), dtype=np.uint8)


def both(place: Path, net: nn.Module, images: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    for blocks in (False, True):
        proto = written(place, net, images, blocks=blocks)
        yield proto, onnx_format.load(place / "int8.onnx")(images[:5])[0]


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size", "act"),
    [
        (3, 3, 1, 1, 32, nn.ReLU()),
        (3, 3, 2, 1, 64, nn.ReLU6()),
        (3, 7, 2, 3, 64, nn.ReLU()),
        (3, 5, 2, 2, 48, nn.Identity()),
        (3, 4, 4, 0, 32, nn.ReLU()),
        (3, 1, 1, 0, 32, nn.ReLU()),
        (3, 2, 2, 0, 32, nn.ReLU()),
        (1, 3, 1, 1, 28, nn.ReLU()),
        (2, 3, 1, 1, 8, nn.ReLU6()),
        (3, 3, 1, 1, 8, nn.Identity()),
    ],
)
def test_blocks_give_the_same_numbers(
    channels: int, kernel: int, stride: int, padding: int, size: int, act: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = Two(nn.Conv2d(channels, 16, kernel, stride, padding), act)
    (_, want), (blocked, got) = both(tmp_path, net, noise(size, channels))
    assert np.array_equal(got, want)
    assert any(node.name.startswith("blocks_") for node in blocked.graph.node)
    assert sum(node.op_type == "Conv" for node in blocked.graph.node) == 2


@pytest.mark.parametrize(("kind", "act"), [(Two, nn.SiLU()), (Split, nn.ReLU())])
def test_blocks_give_the_same_numbers_if_the_layer_is_quantized_before_its_activation(
    kind: type[Two], act: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    (_, want), (blocked, got) = both(tmp_path, kind(nn.Conv2d(3, 16, 3, 1, 1), act), noise(24, 3))
    assert np.array_equal(got, want)
    assert any(node.name.startswith("blocks_") for node in blocked.graph.node)


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(lambda: Two(nn.Conv2d(3, 16, 3, 1, 0), nn.ReLU()), id="narrower"),
        pytest.param(lambda: Two(nn.Conv2d(3, 16, 8, 8, 0), nn.ReLU()), id="a stride of more than a block"),
        pytest.param(
            lambda: Two(nn.Conv2d(3, 16, 3, 3, 1), nn.ReLU()), id="a block is no multiple of the stride"
        ),
        pytest.param(lambda: Two(nn.Conv2d(3, 15, 3, 1, 1, groups=3), nn.ReLU()), id="groups"),
        pytest.param(lambda: Two(nn.Conv2d(3, 16, 3, 1, 2, dilation=2), nn.ReLU()), id="dilated"),
        pytest.param(lambda: Twice(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU()), id="two readers of the picture"),
    ],
)
def test_other_first_layers_stay_as_they_are(net: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, tried = (proto.SerializeToString() for proto, _ in both(tmp_path, net(), noise(24, 3)))
    assert tried == plain


def test_a_width_that_is_no_multiple_of_a_block_stays_as_it_is(tmp_path: Path) -> None:
    plain, tried = (
        proto.SerializeToString()
        for proto, _ in both(tmp_path, Two(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU()), noise(30, 3))
    )
    assert tried == plain


def test_a_float_file_stays_as_it_is(exported: Any) -> None:
    import onnx

    proto = onnx.load(exported.out / "student.onnx")
    before = proto.SerializeToString()
    assert not block_first_layer(proto.graph)
    assert proto.SerializeToString() == before
