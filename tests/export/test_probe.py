from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.export.probe import probe
from pipeline.inputs import InputError


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.mean() > 0 else self.net(-x)


class OfTheBatch(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


class Fixed(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(2, -1))


def test_passes_what_can_be_deployed(world: Any) -> None:
    net = world.make()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    probe(net, name="students.small.net", size=16, channels=3, classes=6)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (Branch, r"students\.small\.net: The network can't be exported.*test_probe\.py, line [0-9]+: `return self\.net\(x\) if x\.mean"),
        (Fixed, r"students\.small\.net can't take images of 16 x 16 x 3: RuntimeError"),
        (OfTheBatch, "answers differently for 3 images.*depend on the batch"),
    ],
)
def test_names_what_cannot(net: type[nn.Module], match: str) -> None:
    with pytest.raises(InputError, match=match):
        probe(net(), name="students.small.net", size=16, channels=3, classes=6)


def test_says_when_the_classes_are_others() -> None:
    with pytest.raises(InputError, match=r"gives \[3, 6\] for 3 images where \[3, 9\] is needed"):
        probe(OfTheBatch(), name="a net", size=16, channels=3, classes=9)
