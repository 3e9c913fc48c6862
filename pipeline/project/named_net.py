"""A network as a person names it on the command line, and what params.yaml says of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import nets
from pipeline.files import sha256
from pipeline.nets import torchvision_zoo
from pipeline.nets.start import SUFFIXES, read_weights
from pipeline.settings import InputError

HUBS = ("torchvision", "timm")
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
        net = f'"{self.net}"' if self.net.startswith("onnx:") else self.net
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
    start = f"{{source: file, file: {path},\n            sha256: {sha256(path)}}}"
    return Named(net, start, LITE if net.startswith("efficientnet_lite") else IMAGENET)


def _file(name: str, option: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"{option}: there is no file {name!r}. Name a network, such as torchvision:resnet50, or a file of "
            "weights."
        )
    return path.resolve()


def net_of_weights(file: Path, option: str) -> str:
    """The network of ours or of torchvision whose tensors have the names and shapes of those in the file."""
    shapes = {key: tuple(tensor.shape) for key, tensor in read_weights(file, option).items()}
    for name, own in _networks(_outputs(shapes)):
        if _fits(own, shapes):
            return name
    raise InputError(
        f"{option}: the tensors in {file.name} are those of no network of torchvision or of our own. Write "
        f"{option} NET={file.name}, where NET is timm:NAME, or my_nets.file:factory for a network of your own."
    )


def _outputs(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many classes weights tell apart: the length of their last bias, or what their last matrix gives."""
    last = next((shape for shape in reversed(shapes.values()) if len(shape) in (1, 2, 4)), (1,))
    return last[0]


def _networks(classes: int) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Every network with a name of its own, and the shapes of its tensors; no memory is taken for them."""
    own = [name for name in nets.names() if "<" not in name and ":" not in name]
    for name in [*own, *(torchvision_zoo.PREFIX + member for member in torchvision_zoo.available())]:
        with torch.device("meta"):
            net: Any = nets.build(name, classes)
        yield name, {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}


def _fits(own: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> bool:
    counters = "num_batches_tracked"  # which old files lack
    return {k: v for k, v in own.items() if not k.endswith(counters)} == {
        k: v for k, v in shapes.items() if not k.endswith(counters)
    }
