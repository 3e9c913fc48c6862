"""A world that trains in a moment: striped pictures of a few classes, a tiny student and a small teacher."""

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from pipeline import methods, nets
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batch, Batches
from pipeline.data.protocol import Subset
from pipeline.functional import Input, normalise
from pipeline.methods import Method
from pipeline.methods._combined import build_method
from pipeline.records.record import Curves
from pipeline.taps.answer import Answer, LogitsOnly
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import fit
from pipeline.training.recipe import TrainConfig

TERMS_ONLY = {"ce_weight": 0.0, "kd_weight": 0.0}  # for a partner, as pipeline/params.py sets them
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = 3
K = TypeVar("K", bound=Method[Any])
N = TypeVar("N", bound=nn.Module)
QUICK = TrainConfig(epochs=2, batch_size=8, lr=0.01, schedule="constant", optimizer="sgd")


def pictures(
    n: int, *, size: int = 8, classes: int = CLASSES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes, uint8 n x size x size x 3, and their classes, which differ in the stripes' period."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    wave = np.sin(np.arange(size) * np.pi / (1 + labels[:, None]) + random.uniform(0, 6, (n, 1)))
    images = 128 + 70 * wave[:, None, :, None] + random.normal(0, 25, (n, size, size, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def save_pictures(folder: Path, n: int, *, size: int = 8, classes: int = CLASSES) -> None:
    """Save `pictures` as a tree of PNG files: `folder/stripes 0/0.png` and so on."""
    for k, (image, label) in enumerate(zip(*pictures(n, size=size, classes=classes), strict=True)):
        (folder / f"stripes {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"stripes {label}" / f"{k}.png")


@dataclass
class World:
    """Images with labels, and both networks with their taps. The teacher is frozen and in eval mode."""

    images: np.ndarray
    labels: np.ndarray
    student: Tapped
    teacher: Tapped

    @classmethod
    def make(
        cls, *, n: int = 22, student: str = "resnet8", teacher: str = "resnet14", seed: int = 0
    ) -> "World":
        images, labels = pictures(n)
        torch.manual_seed(seed)
        probe = normalise(torch.as_tensor(images[:2]), MEAN, STD)
        nets_ = [nets.build(name, CLASSES) for name in (student, teacher)]
        for norm in [m for m in nets_[1].modules() if isinstance(m, nn.BatchNorm2d)]:
            assert norm.running_mean is not None
            norm.running_mean.normal_(0, 0.1)  # as if the teacher had been trained
        nets_[1].requires_grad_(False).eval()
        return cls(images, labels, *(Tapped(net, probe) for net in nets_))

    def batches(self, batch_size: int = 8, labelled: int | None = None, **options: Any) -> Batches:
        """Augmented batches of all images, of which so many have labels; `options` are those of Batches."""
        rows, classes = np.arange(len(self.labels)), tuple(range(CLASSES))
        subset = Subset(rows[:labelled], self.labels[:labelled], classes)
        if labelled is not None:
            subset = replace(subset, unlabelled=rows[labelled:])
        fixed: dict[str, Any] = {
            "seed": 0,
            "mean": MEAN,
            "input": Input(self.images.shape[1], MEAN, STD),
            "augment": AugmentConfig(pad=1, flip=0.5),
            "device": "cpu",
        }
        return Batches(self.images, subset, batch_size=batch_size, **fixed | options)

    def step(self, n: int = 8) -> Step:
        """A step with the first n images, without augmentation."""
        images = normalise(torch.as_tensor(self.images[:n]), MEAN, STD)
        labels = torch.as_tensor(self.labels[:n])
        return Step(images, labels, torch.arange(n), self.student, self.teacher, starts_epoch=True)

    def method(self, name: str, **settings: Any) -> Method[Any]:
        """The method called `name`, for these two networks; with `combine`, also its partner."""
        cfg = methods.load(name).Config(name=name, **settings)
        partner = (
            methods.load(cfg.combine["name"]).Config(**cfg.combine | TERMS_ONLY) if cfg.combine else None
        )
        return build_method(cfg, partner, self.step(4), torch.as_tensor(self.labels))

    def fit(self, method: Method[Any], phase: int = -1, cfg: TrainConfig = QUICK, **options: Any) -> Curves:
        """Train a phase of the method, the last one by default; `options` are those of the training loop.

        With `stop`, an epoch and a step in it, Ctrl-C comes while this step runs.
        """
        fixed: dict[str, Any] = {
            "student": self.student,
            "teacher": self.teacher,
            "accelerator": Accelerator(cpu=True),
            "seed": 0,
        }
        batches = options.pop("batches", None) or self.batches(cfg.batch_size)
        if stop := options.pop("stop", None):
            interrupt(batches, *stop)
        return fit(method.phases(self.student)[phase], batches, cfg, method=method, **fixed | options)


def interrupt(batches: Batches, epoch: int, step: int) -> None:
    """Send Ctrl-C to this process when that batch is made."""
    usual = batches.epoch

    def batches_of(n: int, first: int = 0) -> Iterator[Batch]:
        for k, batch in enumerate(usual(n, first), start=first):
            if (n, k) == (epoch, step):
                signal.raise_signal(signal.SIGINT)
            yield batch

    batches.epoch = batches_of  # type: ignore[method-assign]


def snapshot(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, by name; the names of the first module start with `0.`."""
    return {
        f"{n}.{name}": t.detach().clone()
        for n, module in enumerate(modules)
        for name, t in module.state_dict().items()
    }


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that differ between two snapshots."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_kind(kind: type[N], modules: Iterable[nn.Module]) -> list[N]:
    """The modules, which are all of this kind."""
    found = [module for module in modules if isinstance(module, kind)]
    assert len(found) == len([*modules])
    return found


def noise(*shape: int) -> Tensor:
    """Normal random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def maps(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Random maps of these shapes, called stage1, stage2 and so on."""
    return {f"stage{n}": noise(*shape) for n, shape in enumerate(shapes, start=1)}


def step_of_maps(
    student: dict[str, Tensor], teacher: dict[str, Tensor], epoch: int = 0, *, starts_epoch: bool = True
) -> Step:
    """A step whose answers have these maps, the same before and after activation; all else in them is 0."""
    size = len(next(iter(student.values())))
    answers = [
        Answer(torch.zeros(size, 2), shown, torch.zeros(size, 1), shown) for shown in (student, teacher)
    ]
    step = Step.of(
        student=answers[0], teacher=answers[1], labels=torch.zeros(size).long(), index=torch.arange(size)
    )
    step.epoch, step.starts_epoch = epoch, starts_epoch
    return step


def method_on_maps(
    kind: type[K], student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any
) -> tuple[K, Step]:
    """The method in float64, with these settings, and the step of these maps, for which it was built."""
    step = step_of_maps(student, teacher)
    cfg = kind.Config(name=kind.__module__.rpartition(".")[2], **settings)
    return kind(cfg, step, torch.zeros(2)).double(), step


def step_of_logits(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Step:
    """The last step of a phase, whose answers have these logits and nothing else.

    All labels are class 0 if none are given.
    """
    size = len(student)
    step = Step.of(
        student=LogitsOnly(student),
        teacher=LogitsOnly(teacher),
        labels=torch.zeros(size).long() if labels is None else labels,
        index=torch.arange(size),
    )
    step.progress = 1.0
    return step


def terms_of_logits(
    kind: type[K], student: Tensor, teacher: Tensor, labels: Tensor | None = None, /, **settings: Any
) -> dict[str, Tensor]:
    """The method's own terms for these logits, with these settings."""
    step = step_of_logits(student, teacher, labels)
    cfg = kind.Config(name=kind.__module__.rpartition(".")[2], **settings)
    return kind(cfg, step, torch.zeros(2)).terms(step)
