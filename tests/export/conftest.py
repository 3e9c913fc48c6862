from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.decode import see
from pipeline.export import build_bundle
from pipeline.export.deployable import Deployable
from pipeline.export.int8 import Int8Config

MEAN, STD, SIZE, CLASSES = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 16, ("ant", "bee", "cat", "dog", "elk", "fox")


class Net(nn.Module):
    """A small residual network with everything that exports get wrong."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.norm(self.conv(x)) + x)
        x = self.pool(self.act(self.down(x))).flatten(1)
        logits: Tensor = self.head(self.drop(x))
        return logits


def make(channels: int = 3, kind: type[nn.Module] = Net) -> nn.Module:
    """A network whose weights and statistics are like those of a trained one: none has its initial value."""
    torch.manual_seed(0)
    net = kind(channels) if kind is Net else kind()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.3, 2.0)  # type: ignore[union-attr]
            if isinstance(module, nn.Linear):
                module.weight.mul_(10)
    return net.eval()


def pictures(channels: int = 3, n: int = 80, size: int = SIZE) -> np.ndarray:
    """Smooth coloured blobs, more like photographs than noise is.

    They lie in memory like pictures read from disk. For another layout torch takes other kernels, which round
    differently on some CPUs.
    """
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(40, 215, (n, channels, 4, 4)))
    fine = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255).byte()
    return np.ascontiguousarray(fine.permute(0, 2, 3, 1).numpy())


class Lazy:
    """Images that are resized when they are read. It offers what an exporter may use, and nothing more."""

    def __init__(self, images: np.ndarray, size: int) -> None:
        self.images, self.shape = images, (len(images), size, size, images.shape[3])
        self.reads: list[int] = []  # how many images each time

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        assert isinstance(rows, slice) or rows.dtype == np.int64
        some = self.images[rows]
        self.reads.append(len(some))
        return np.stack([see(image, self.shape[1]) for image in some])


PROVENANCE = {
    "data": "d" * 64,
    "teacher": "e" * 64,
    "student": "f" * 64,
    "code": "c" * 64,
    "net": "net",
    "seed": 1,
    "record": "r" * 32,
    "method": "fitnet",
    "cite": 'FitNets (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015).',
    "source": "torchvision:CIFAR10",
    "splits": {"train": 80, "val": 80, "test": 80},
    "learned_from": {"images": 50, "unlabelled": 30},
}
EXPORTED = {
    "seed": 1,
    "images": 80,
    "interval": [0.815, 0.948],
    "accuracy": 0.9,
    "balanced_accuracy": 0.8125,
    "macro_f1": 0.75,
    "ece": 0.0625,
    "images_per_class": [20, 12, 12, 12, 12, 12],
    "per_class": [1.0, 0.75, 0.5, 0.875, None, 1.0],
}
METRICS = {"accuracy": 0.875, "spread": 0.0125, "n": 3, "exported": EXPORTED}
# The weights are not trained, so all classes are close to each other. Portable, because sums with 8-bit
# weights saturate on CPUs without VNNI, where the gate would ship another file.
INT8 = Int8Config(images=80, portable=True, min_agreement=90, min_snr=20)


def labelled(net: nn.Module, images: np.ndarray | Lazy) -> build_bundle.Labelled:
    """Labels for which the network is right on three images of four."""
    labels = Deployable(net, MEAN[: images.shape[3]], STD[: images.shape[3]]).predict(images[:]).argmax(1)
    labels[::4] = (labels[::4] + 1) % len(CLASSES)
    return build_bundle.Labelled(images, labels)


def write(
    net: nn.Module,
    out: Path,
    channels: int = 3,
    cfg: build_bundle.ExportConfig | None = None,
    steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """`steps`: the size at which pictures are kept, and the one that the network sees."""
    kept, size = steps or (None, SIZE)
    images = pictures(channels, 240, kept or SIZE)
    training, validation, test = (
        Lazy(part, size) if steps else part for part in (images[:80], images[80:160], images[160:])
    )
    return build_bundle.build_bundle(
        net,
        out=out,
        name="a run",
        classes=CLASSES,
        mean=MEAN[:channels],
        std=STD[:channels],
        training=training,
        validation=labelled(net, validation),
        test=labelled(net, test),
        metrics=METRICS,
        provenance=PROVENANCE,
        cfg=cfg or build_bundle.ExportConfig(int8=INT8),
        kept=kept,
    )


@dataclass(frozen=True)
class World:
    """The names above, for the tests in this folder."""

    Net: type[nn.Module]
    Lazy: type[Lazy]
    make: Callable[..., nn.Module]
    pictures: Callable[..., np.ndarray]
    write: Callable[..., dict[str, Any]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    classes: tuple[str, ...]
    int8: Int8Config


@pytest.fixture(scope="session")
def world() -> World:
    return World(Net, Lazy, make, pictures, write, MEAN, STD, SIZE, CLASSES, INT8)


@pytest.fixture
def images() -> np.ndarray:
    return pictures()


@dataclass(frozen=True)
class Exported:
    net: nn.Module
    out: Path
    bundle: dict[str, Any]
    seen: list[Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """What each ONNX file itself says of the bundle."""
        keys = ("schema", "classes", "input", "outputs", "mean", "std", "transform")
        return {key: self.bundle[key] for key in keys}


@pytest.fixture(scope="session")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of a network that sees 32 x 32 pixels of pictures that are kept at 48 x 48."""
    net, out = make(), tmp_path_factory.mktemp("smaller") / "bundle"
    return Exported(net, out, write(net, out, steps=(48, 32)), [])


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The network of `exported` with calibrated probabilities."""
    net, out = make(), tmp_path_factory.mktemp("calibrated") / "bundle"
    cfg = build_bundle.ExportConfig(int8=INT8, calibrate_probabilities=True)
    return Exported(net, out, write(net, out, cfg=cfg), [])


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of a network on which a distillation method has left hooks. `seen` is what the hook got."""
    net, seen = make(), []
    net.stem.register_forward_hook(lambda module, args, output: seen.append(output))  # type: ignore[union-attr]
    net(torch.zeros(1, 3, SIZE, SIZE))
    out = tmp_path_factory.mktemp("a place with spaces") / "bundle"
    return Exported(net, out, write(net, out), seen)
