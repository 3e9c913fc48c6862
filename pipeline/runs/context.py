"""What all seeds of a stage share: the images to learn from, the images to validate on, and the device."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline import checkpoint, nets
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batches
from pipeline.data.protocol import (
    ProtocolConfig,
    Subset,
    class_sets,
    describe_subset,
    draw_subset,
    rows_of_classes,
)
from pipeline.data.resident import resident_bytes
from pipeline.data.seen import Seen, images_at_once
from pipeline.data.store import UNLABELLED, Store
from pipeline.device import keep_memory
from pipeline.functional import Input, class_means, normalise
from pipeline.methods import Method, MethodConfig
from pipeline.methods._combined import build_method
from pipeline.nets import NetConfig
from pipeline.nets.input import resolve_input
from pipeline.settings import InputError
from pipeline.taps import processes
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training.recipe import TrainConfig


class Context:
    """Images, labels and device of one stage, and how networks, methods and batches are made for them."""

    def __init__(self, store: Store, subset: Subset, augment: AugmentConfig, *, is_cross_task: bool) -> None:
        """`subset`: the images to learn from, of the classes to learn. `is_cross_task`: whether teacher and
        student have different classes."""
        keep_memory()
        # without cpu=True, several processes on a machine without accelerator would not find each other
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.device = self.accelerator.device
        self.store, self.subset, self.augment, self.is_cross_task = store, subset, augment, is_cross_task
        self.labels = torch.as_tensor(subset.labels)
        self.validation = rows_of_classes(store.labels, store.indices("val"), subset.classes)
        self._validation: dict[int, Tensor] = {}  # its pixels, by their size

    @classmethod
    def of_teacher(cls, data: Path | Store, protocol: ProtocolConfig, augment: AugmentConfig) -> "Context":
        """A teacher learns from the whole training split of its classes, with the labels of the store.

        In every epoch it sees new views, also where students see fixed ones.
        """
        store = data if isinstance(data, Store) else Store.open(data)
        teacher_classes, student_classes = class_sets(store.classes, protocol)
        everything = ProtocolConfig(class_overlap=protocol.class_overlap, class_seed=protocol.class_seed)
        subset, fresh = (
            _train_subset(store, everything, teacher_classes),
            augment.model_copy(update={"views": 0}),
        )
        return cls(store, subset, fresh, is_cross_task=teacher_classes != student_classes)

    @classmethod
    def of_students(cls, data: Path | Store, protocol: ProtocolConfig, augment: AugmentConfig) -> "Context":
        """Students learn from the train subset that the protocol draws."""
        store = data if isinstance(data, Store) else Store.open(data)
        teacher_classes, student_classes = class_sets(store.classes, protocol)
        subset = _train_subset(store, protocol, student_classes)
        return cls(store, subset, augment, is_cross_task=teacher_classes != student_classes)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        is_main: bool = self.accelerator.is_main_process
        return is_main

    @property
    def classes(self) -> list[str]:
        """Names of the classes to learn."""
        return [self.store.classes[n] for n in self.subset.classes]

    @property
    def data_input(self) -> Input:
        """Images as the store has them, normalised by the data's own mean and deviation."""
        return Input(self.store.size, tuple(self.store.mean), tuple(self.store.std))

    def facts(self, net: Tapped) -> dict[str, Any]:
        """What must be saved with a network so that it can be built again."""
        own = {"taps": net.taps, "input": net.input.as_facts(), "loaded": sorted(net.loaded)}
        return own | {"classes": self.classes, "channels": self.store.channels}

    def describe_subset(self) -> dict[str, Any]:
        return describe_subset(self.subset, self.store.labels, self.store.classes)

    def images(self, rows: np.ndarray, input: Input) -> Tensor:
        """Images of these rows of the store, whole, as a network takes them; on the device."""
        pixels = torch.as_tensor(Seen(self.store.images, input.size)[rows]).to(self.device)
        return normalise(pixels, input.mean, input.std)

    def input_of(self, cfg: NetConfig, source: str, field: str) -> Input:
        """How the network of `cfg` takes its images. `source`: where its first weights come from."""
        return resolve_input(cfg.input, net=cfg.net, source=source, data=self.data_input, field=field)

    def build_network(self, cfg: NetConfig, *, classes: int | None = None) -> nn.Module:
        return nets.build(cfg.net, classes or len(self.subset.classes), self.store.channels)

    def load_network(self, folder: Path) -> Tapped:
        net, facts = checkpoint.load_network(folder)
        return self.tap(net, facts["taps"], Input.from_facts(facts["input"]), facts["loaded"])

    def tap(self, net: nn.Module, taps: dict[str, str], input: Input, loaded: Collection[str] = ()) -> Tapped:
        probe = self.images(self.subset.rows[:2], input)
        return Tapped(net.to(self.device), probe, taps=taps, input=input, loaded=loaded)

    def probe(self, student: Tapped, teacher: Tapped | None) -> Step:
        """A small batch: methods read shapes from what the networks answer to it."""
        rows = self.subset.rows[:4]
        index = torch.arange(len(rows), device=self.device)
        images, labels = self.images(rows, student.input), self.labels[: len(rows)].to(self.device)
        if teacher is None or teacher.input == student.input:
            return Step(images, labels, index, student, teacher)
        for_teacher = self.images(rows, teacher.input)
        return Step(images, labels, index, student, teacher, for_teacher=lambda images, index: for_teacher)

    def build_method(
        self, cfg: MethodConfig, student: Tapped, teacher: Tapped | None, partner: MethodConfig | None = None
    ) -> Method[Any]:
        with in_eval_mode(student.net):
            return build_method(cfg, partner, self.probe(student, teacher), self.labels).to(self.device)

    def batches(
        self,
        cfg: TrainConfig,
        seed: int,
        student: Tapped,
        teacher: Tapped | None,
        *,
        needs_labels: bool = False,
    ) -> Batches:
        """With `needs_labels`, of the labelled images alone."""
        return Batches(
            self.store.images,
            self.subset,
            batch_size=cfg.batch_size,
            seed=seed,
            mean=self.data_input.mean,
            augment=self.augment,
            class_balance=cfg.class_balance,
            input=student.input,
            teacher_input=teacher.input if teacher else None,
            device=self.device,
            shard=(self.accelerator.process_index, self.accelerator.num_processes),
            unlabelled_share=0.0 if needs_labels else cfg.unlabelled_share,
            parts=cfg.accumulate,
        )

    def validate(self, net: nn.Module, input: Input) -> dict[str, float]:
        """Accuracy, cross-entropy, balanced accuracy and macro-F1 on the validation split."""
        labels = torch.as_tensor(self.validation.labels).to(self.device)
        answers, loss = self._predicted(net, input, labels)
        if math.isnan(loss):
            raise InputError(
                "The network's logits for the validation images are no longer numbers (NaN). Lower the "
                "learning rate (train.lr)."
            )
        count = len(labels)
        means = class_means(answers, labels, len(self.subset.classes))
        scores = {"accuracy": (answers == labels).sum().item() / count, "loss": loss / count}
        return {f"val_{name}": value for name, value in (scores | means._asdict()).items()}

    def _predicted(self, net: nn.Module, input: Input, labels: Tensor) -> tuple[Tensor, float]:
        """The class of each image and the sum of the losses. Each process answers to some of the images."""
        step, world, loss = images_at_once(input.size, most=512), processes.count(), 0.0
        step = min(step, max(1, -(-len(labels) // world)))
        answers = torch.zeros_like(labels)
        with in_eval_mode(net):
            for start in range(step * processes.rank(), len(labels), step * world):
                part = slice(start, start + step)
                logits = net(self._validation_images(start, start + step, input)).float()
                answers[part] = logits.argmax(1)
                loss += F.cross_entropy(logits, labels[part], reduction="sum").item()
        return processes.summed(answers), sum(processes.of_each(loss))

    def _validation_images(self, start: int, end: int, input: Input) -> Tensor:
        """If they fit into memory, they are read and resized once for each size that networks see."""
        rows, size = self.validation.rows, input.size
        if size not in self._validation:
            if len(rows) * size**2 * self.store.channels > resident_bytes(torch.device("cpu")):
                return self.images(rows[start:end], input)
            self._validation[size] = torch.as_tensor(Seen(self.store.images, size)[rows])
        return normalise(self._validation[size][start:end].to(self.device), input.mean, input.std)


def _train_subset(store: Store, protocol: ProtocolConfig, ids: Sequence[int]) -> Subset:
    train, unlabelled = store.indices("train"), store.indices(UNLABELLED)
    return draw_subset(store.labels, train, protocol, classes=store.classes, ids=ids, unlabelled=unlabelled)
