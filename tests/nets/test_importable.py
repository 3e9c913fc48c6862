"""Networks of one's own module."""

import re
import sys
from pathlib import Path

import pytest
import torch
from nets.refused import refusal
from torch import nn

from pipeline.nets import build

MODULE = """
from torch import nn

class Small(nn.Sequential):
    def __init__(self, num_classes, width=4):
        body = nn.Conv2d(3, width, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*body, nn.Linear(width, num_classes))

def make_small(num_classes):
    return Small(num_classes)

def make_any(**settings):
    return Small(settings["num_classes"])

def no_classes(width):
    return Small(10, width)

def needs_more(num_classes, width):
    return Small(num_classes, width)

def not_a_net(num_classes):
    return [num_classes]

def fails_inside(num_classes):
    raise TypeError("my own mistake")

a_number = 3
"""


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text(MODULE)
    (package / "broken.py").write_text("def oops(:\n")
    (package / "needy.py").write_text("import no_such_library_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("own_nets")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("factory", ["Small", "make_small", "make_any"])
def test_a_factory_builds_the_network(factory: str) -> None:
    net = build(f"own_nets.small:{factory}", 6)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 6)
    activation = net.get_submodule("1")
    assert isinstance(activation, nn.ReLU)
    assert not activation.inplace


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "own_nets.smal:make_small",
            "there is no 'own_nets.smal'.*Put it in the project's folder, or install it",
        ),
        ("no_such_package.nets:make", "there is no 'no_such_package'"),
        ("own_nets.small.deeper:make", "names the module 'own_nets.small.deeper'"),
        ("own_nets.small:make_smal", "in own_nets.small: there is no 'make_smal'. Did you mean 'make_small'"),
        ("own_nets.small:no_classes", "Give it a parameter `num_classes`"),
        ("own_nets.small:needs_more", "defaults for all others"),
        ("own_nets.small:not_a_net", "returned a list. It must return a torch.nn.Module"),
        ("own_nets.small:a_number", "is of type int. It must be a function or class"),
        ("own_nets.broken:oops", "its import fails with SyntaxError"),
        (
            "own_nets.needy:make",
            "its import fails with ModuleNotFoundError: No module named 'no_such_library_anywhere'",
        ),
        ("own_nets/small.py:make_small", "is not of the form package.module:factory"),
        ("own_nets.small:", "is not of the form package.module:factory"),
        (":make", "is not of the form package.module:factory"),
        ("torchvison:resnet18", "Networks of torchvision are written torchvision:NAME"),
    ],
)
def test_a_wrong_name_is_refused_with_what_to_do(name: str, message: str) -> None:
    assert re.search(message, refusal(name))


def test_a_mistake_inside_the_factory_keeps_its_traceback() -> None:
    with pytest.raises(TypeError, match="my own mistake"):
        build("own_nets.small:fails_inside", 5)
