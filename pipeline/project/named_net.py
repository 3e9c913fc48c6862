"""A network as a person names it on the command line, and what params.yaml says of it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import nets
from pipeline.files import sha256
from pipeline.nets import torchvision_zoo
from pipeline.nets.start import SUFFIXES, read_weights
from pipeline.settings import InputError

HUBS = ("torchvision", "timm")
Shapes = dict[str, tuple[int, ...]]
IMAGENET = "{mean: imagenet, std: imagenet}    # what the weights were trained with"
LITE = "{mean: [0.49804, 0.49804, 0.49804], std: [0.50196, 0.50196, 0.50196]}"


@dataclass(frozen=True)
class Named:
    net: str
    start: str  # as in params.yaml; empty: random weights
    input: str = ""

    @property
    def is_trainable(self) -> bool:
        return not self.net.startswith("onnx:")

    def lines(self) -> list[str]:
        net = self.net if self.is_trainable else _quoted(self.net)
        given = {"net": net, "start": self.start, "input": self.input}
        return [f"{key}: {value}" for key, value in given.items() if value]


def named_net(words: str, option: str) -> Named:
    """NET, NET=WEIGHTS, or a file: an ONNX graph, or weights of a network that is found out."""
    net, _, file = words.partition("=")
    if net.endswith(".onnx"):
        path = _file(net, option)
        return Named(f"onnx:{path}", f"{{source: file, sha256: {sha256(path)}}}", IMAGENET)
    if net.endswith(SUFFIXES) and not file:
        net, file = net_of_weights(_file(net, option), option), net
    if not file:
        hub = net.partition(":")[0]
        return Named(net, f"{{source: {hub}}}" if hub in HUBS else "")
    path = _file(file, option)
    start = f"{{source: file, file: {_quoted(path)},\n            sha256: {sha256(path)}}}"
    return Named(net, start, LITE if net.startswith("efficientnet_lite") else IMAGENET)


def _quoted(text: str | Path) -> str:
    """As a scalar of YAML, whatever is in it."""
    return json.dumps(str(text), ensure_ascii=False)


def _file(name: str, option: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"{option}: there is no file {name!r}. Name a network, such as torchvision:resnet50, or a file "
            "of weights."
        )
    return path.resolve()


def net_of_weights(file: Path, option: str) -> str:
    """The network of ours or of torchvision whose tensors have the names and shapes of those in the file."""
    shapes = _shapes(read_weights(file, option))
    for name, own in _networks():
        if _fits(own, shapes):
            return name
    raise InputError(
        f"{option}: the tensors in {file.name} are those of no network of torchvision or of our own. Write "
        f"{option} NET={file.name}, where NET is timm:NAME, or my_nets.file:factory for one of yours."
    )


def _networks() -> Iterator[tuple[str, Shapes]]:
    """Every network with a name of its own, and the shapes of its tensors; no memory is taken for them."""
    own = [name for name in nets.names() if "<" not in name and ":" not in name]
    for name in [*own, *(torchvision_zoo.PREFIX + member for member in torchvision_zoo.available())]:
        try:
            with torch.device("meta"):
                net = nets.build(name, classes=2)
        except NotImplementedError:  # regnets compute while they are built
            continue
        yield name, _shapes(net.state_dict())


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Without the counters of batch norm, which old files lack."""
    return {
        key: tuple(tensor.shape) for key, tensor in weights.items() if not key.endswith("num_batches_tracked")
    }


def _fits(own: Shapes, found: Shapes) -> bool:
    """The layer that classifies, a weight and a bias, may be for other classes."""
    if own.keys() != found.keys():
        return False
    others = [key for key in own if own[key] != found[key]]
    return len(others) <= 2 and all(own[key][1:] == found[key][1:] for key in others)
