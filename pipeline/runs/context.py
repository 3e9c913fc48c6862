"""What all seeds of a stage share: the images to learn from, the images to validate on, and the device."""

import math
from collections.abc import Sequence
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
from pipeline.data.store import Store
from pipeline.functional import normalise
from pipeline.methods import Method, MethodConfig
from pipeline.methods._combined import build_method
from pipeline.nets import NetConfig
from pipeline.settings import InputError
from pipeline.taps import Step, Tapped, in_eval_mode
from pipeline.training.recipe import TrainConfig


class Context:
    """Images, labels and device of one stage, and how networks, methods and batches are made for them."""

    def __init__(self, store: Store, subset: Subset, augment: AugmentConfig, *, is_cross_task: bool) -> None:
        """`subset`: the images to learn from, of the classes to learn. `is_cross_task`: whether teacher and
        student have different classes."""
        # without cpu=True, several processes on a machine without accelerator would not find each other
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.device = self.accelerator.device
        self.store, self.subset, self.augment, self.is_cross_task = store, subset, augment, is_cross_task
        self.labels = torch.as_tensor(subset.labels)
        self.validation = rows_of_classes(store.labels, store.indices("val"), subset.classes)

    @classmethod
    def of_teacher(cls, data: Path, protocol: ProtocolConfig, augment: AugmentConfig) -> "Context":
        """A teacher learns from the whole training split of its classes, with the labels of the store."""
        store = Store.open(data)
        teacher_classes, student_classes = class_sets(store.classes, protocol)
        everything = ProtocolConfig(class_overlap=protocol.class_overlap, class_seed=protocol.class_seed)
        subset = _train_subset(store, everything, teacher_classes)
        return cls(store, subset, augment, is_cross_task=teacher_classes != student_classes)

    @classmethod
    def of_students(cls, data: Path, protocol: ProtocolConfig, augment: AugmentConfig) -> "Context":
        """Students learn from the train subset that the protocol draws."""
        store = Store.open(data)
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
    def facts(self) -> dict[str, Any]:
        """What must be saved with a network so that it can be built again."""
        return {"classes": self.classes, "channels": self.store.channels, "size": self.store.size}

    def describe_subset(self) -> dict[str, Any]:
        return describe_subset(self.subset, self.store.labels, self.store.classes)

    def images(self, rows: np.ndarray) -> Tensor:
        """Normalised images of these rows of the store, on the device."""
        pixels = torch.as_tensor(self.store.images[rows]).to(self.device)
        return normalise(pixels, self.store.mean, self.store.std)

    def build_network(self, cfg: NetConfig) -> nn.Module:
        return nets.build(cfg.net, len(self.subset.classes), self.store.channels)

    def load_network(self, folder: Path) -> Tapped:
        net, facts = checkpoint.load_network(folder)
        return self.tap(net, facts["taps"])

    def tap(self, net: nn.Module, taps: dict[str, str]) -> Tapped:
        return Tapped(net.to(self.device), self.images(self.subset.rows[:2]), taps=taps)

    def probe(self, student: Tapped, teacher: Tapped | None) -> Step:
        """A small batch: methods read shapes from what the networks answer to it."""
        rows = self.subset.rows[:4]
        index = torch.arange(len(rows), device=self.device)
        return Step(self.images(rows), self.labels[: len(rows)].to(self.device), index, student, teacher)

    def build_method(
        self, cfg: MethodConfig, student: Tapped, teacher: Tapped | None, partner: MethodConfig | None = None
    ) -> Method[Any]:
        with in_eval_mode(student.net):
            return build_method(cfg, partner, self.probe(student, teacher), self.labels).to(self.device)

    def batches(self, cfg: TrainConfig, seed: int) -> Batches:
        return Batches(
            self.store.images,
            self.subset,
            batch_size=cfg.batch_size,
            seed=seed,
            mean=self.store.mean,
            std=self.store.std,
            augment=self.augment,
            device=self.device,
            shard=(self.accelerator.process_index, self.accelerator.num_processes),
        )

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Accuracy and cross-entropy on the validation split."""
        right = loss = 0.0
        with in_eval_mode(net):
            for start in range(0, len(self.validation.rows), 512):
                logits = net(self.images(self.validation.rows[start : start + 512])).float()
                labels = torch.as_tensor(self.validation.labels[start : start + 512]).to(self.device)
                right += (logits.argmax(1) == labels).sum().item()
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
        if math.isnan(loss):
            raise InputError(
                "The network's logits for the validation images are no longer numbers (NaN). Lower the "
                "learning rate (train.lr)."
            )
        count = len(self.validation.rows)
        return {"val_accuracy": right / count, "val_loss": loss / count}


def _train_subset(store: Store, protocol: ProtocolConfig, ids: Sequence[int]) -> Subset:
    return draw_subset(store.labels, store.indices("train"), protocol, classes=store.classes, ids=ids)
