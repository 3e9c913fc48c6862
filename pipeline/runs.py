"""Networks, data and a method put together and trained, seed by seed: what the training stages call."""

import fcntl
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from pipeline import checkpoint, methods, nets, saved
from pipeline.config import Params, RunConfig
from pipeline.data.batches import Batches
from pipeline.data.protocol import ProtocolConfig, subset
from pipeline.data.store import Store
from pipeline.functional import normalise
from pipeline.inputs import InputError, unknown
from pipeline.methods.base import Method, MethodConfig, Phase
from pipeline.nets.start import load_start
from pipeline.record import Record, sha256
from pipeline.taps import Step, Tapped, resting
from pipeline.train import Curves, TrainConfig, fit


class Lab:
    """What all seeds of a stage share: the data, the device, the work folder."""

    def __init__(self, params: Params, data: Path, protocol: ProtocolConfig, work: Path) -> None:
        self.params, self.work = params, work
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # else several processes on CPUs would not find each other
        self.device = self.accelerator.device
        self.store = Store.open(data)
        self.sample = subset(self.store.labels, self.store.indices("train"), protocol, classes=self.store.classes)
        self.labels = torch.as_tensor(self.sample.labels)
        self.validation = self.store.indices("val")
        self.facts = {"classes": list(self.store.classes), "channels": self.store.channels, "size": self.store.size}

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def images(self, rows: Any) -> torch.Tensor:
        pixels = torch.as_tensor(self.store.images[rows]).to(self.device)
        return normalise(pixels, self.store.mean, self.store.std)

    def net(self, name: str) -> nn.Module:
        return nets.build(name, len(self.store.classes), self.store.channels)

    def tapped(self, net: nn.Module, taps: dict[str, str]) -> Tapped:
        return Tapped(net.to(self.device), self.images(self.sample.rows[:2]), taps=taps)

    def probe(self, student: Tapped, teacher: Tapped | None) -> Step:
        """A small batch for methods to read shapes from; it leaves no trace in the networks."""
        rows = self.sample.rows[:4]
        index = torch.arange(len(rows), device=self.device)
        return Step(self.images(rows), self.labels[: len(rows)].to(self.device), index, student, teacher)

    def method(self, cfg: MethodConfig, student: Tapped, teacher: Tapped | None) -> Method:
        with resting(student.net):
            return methods.load(cfg.name)(cfg, self.probe(student, teacher), self.labels).to(self.device)

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Accuracy and cross-entropy on the validation split."""
        right = loss = 0.0
        with resting(net):
            for start in range(0, len(self.validation), 512):
                rows = self.validation[start : start + 512]
                logits = net(self.images(rows)).float()
                labels = torch.as_tensor(self.store.labels[rows]).to(self.device)
                right += (logits.argmax(1) == labels).sum().item()
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
        if loss != loss:
            raise InputError("The student's answers on the validation images aren't numbers any more. Lower the learning rate (train.lr).")
        return {"val_accuracy": right / len(self.validation), "val_loss": loss / len(self.validation)}

    def fit(
        self,
        phase: Phase,
        cfg: TrainConfig,
        *,
        student: Tapped,
        teacher: Tapped | None,
        method: Method,
        seed: int,
        select: bool,
        folder: Path,
        label: str,
    ) -> Curves:
        """One phase; its order of images, views and random numbers depend on the seed and the phase's name alone."""
        own_seed = zlib.crc32(f"{seed}/{phase.name}".encode())
        shard = (self.accelerator.process_index, self.accelerator.num_processes)
        batches = Batches(
            self.store.images, self.sample, batch_size=cfg.batch_size, seed=own_seed, mean=self.store.mean, std=self.store.std,
            augment=self.params.augment, device=self.device, shard=shard,
        )  # fmt: skip
        curves = fit(
            phase, batches, cfg, student=student, teacher=teacher, method=method, accelerator=self.accelerator, seed=own_seed,
            validate=self.validate if select else None, state_file=folder / f"{phase.name}.state", label=f"{label} {phase.name}",
        )  # fmt: skip
        if self.main:
            best = f", validation accuracy {max(curves['val_accuracy']):.1%}" if select else f", loss {curves['loss'][-1]:.4g}"
            print(
                f"{label} {phase.name}: {cfg.epochs} epochs on {len(self.labels)} images, {curves['seconds'][-1]:.1f} s{best}", flush=True
            )
        return curves

    def teacher(self, folder: Path) -> Tapped:
        net, facts = saved.load(folder)
        return self.tapped(net, facts["taps"])

    @contextmanager
    def desk(self, stage: str, name: str, **depends: Any) -> Iterator[Path]:
        """A work folder of this stage with exactly these inputs and this code; it outlives a stop and goes when the stage is done."""
        code = {file.name: sha256(file) for file in sorted(Path(__file__).parent.rglob("*.py"))}
        key = json.dumps([stage, name, self.store.content, self.params.augment.model_dump(), depends, code], sort_keys=True, default=str)
        folder = self.work / f"{stage}-{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.main:
            yield folder
            return
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{stage} {name} is already being trained by another process (lock {folder / 'lock'}). Wait for it, or stop it."
                ) from error
            yield folder
            shutil.rmtree(folder)


def train_teacher(params: Params, name: str, told: Record, *, data: Path, out: Path, work: Path) -> None:
    """`told` is filled with what there is to tell; so below."""
    cfg, lab = params.teacher(name), Lab(params, data, ProtocolConfig(), work)
    told.inputs["data"] = lab.store.content
    with lab.desk("teacher", name, cfg=cfg.model_dump()) as desk:
        torch.manual_seed(0)
        net = lab.net(cfg.net)
        load_start(net, cfg.start, name=cfg.net, field=f"teachers.{name}.start")
        teacher = lab.tapped(net, cfg.taps)
        method = lab.method(methods.load("ce").Config(name="ce"), teacher, None)
        (phase,) = method.phases(teacher)
        told.curves["teacher"] = lab.fit(
            phase, cfg.train, student=teacher, teacher=None, method=method, seed=0, select=True, folder=desk, label=f"teacher {name}"
        )
        told.metrics |= lab.validate(teacher.net)
        if lab.main:
            with checkpoint.atomic_folder(out) as folder:
                checkpoint.save_net(folder, teacher.net.state_dict(), {"net": cfg.net, "taps": teacher.taps} | lab.facts | told.metrics)
            told.outputs["teacher"] = sha256(out)


def pretrain(params: Params, run: str, told: Record, *, data: Path, teacher: Path, out: Path, work: Path) -> None:
    """All phases of the run's method but the last; for a one-phase method, the seeded initial student."""
    _train(params, run, told, data=data, teacher=teacher, initial=None, out=out, work=work)


def distill(params: Params, run: str, told: Record, *, data: Path, teacher: Path, initial: Path, out: Path, work: Path) -> None:
    """The last phase of the run's method, from what `pretrain` left; the student is chosen on validation."""
    _train(params, run, told, data=data, teacher=teacher, initial=initial, out=out, work=work)


def _train(params: Params, run: str, told: Record, *, data: Path, teacher: Path, initial: Path | None, out: Path, work: Path) -> None:
    cfg, protocol = params.run(run), params.run_protocol(run)
    student_cfg = params.students[cfg.student]
    last = initial is not None
    lab = Lab(params, data, protocol, work)
    guide = lab.teacher(teacher)
    told.inputs |= {"data": lab.store.content, "teacher": sha256(teacher)} | ({"initial": sha256(initial)} if initial else {})
    told.details["sample"] = {"images": len(lab.labels), "sha256": hashlib.sha256(lab.sample.rows.tobytes()).hexdigest()}
    depends = {"run": cfg, "train": params.train, "protocol": protocol, "student": student_cfg}
    with lab.desk(told.stage, run, **{name: part.model_dump() for name, part in depends.items()}, inputs=told.inputs) as desk:
        for seed in cfg.seeds:
            torch.manual_seed(seed)
            student = lab.tapped(lab.net(student_cfg.net), student_cfg.taps)
            method = lab.method(params.method(run), student, guide)
            phases = _named(method.phases(student), run, cfg)
            if initial is not None:
                _restore(initial / f"seed-{seed}", student, method)
            for phase in phases[-1:] if last else phases[:-1]:
                told.curves[f"{phase.name}/seed-{seed}"] = lab.fit(
                    phase, params.phase(run, phase.name), student=student, teacher=guide, method=method, seed=seed,
                    select=last, folder=desk / f"seed-{seed}", label=f"{run} seed {seed}",
                )  # fmt: skip
            scores = lab.validate(student.net) if last else {}
            told.metrics |= {f"{name}/seed-{seed}": value for name, value in scores.items()}
            if lab.main:
                facts = {"net": student_cfg.net, "taps": student.taps, "seed": seed} | lab.facts | scores
                checkpoint.save_net(desk / "out" / f"seed-{seed}", student.net.state_dict(), facts)
                if not last:
                    checkpoint.save_weights(desk / "out" / f"seed-{seed}" / "method.safetensors", method.state_dict())
            lab.accelerator.wait_for_everyone()
        if last:
            for name in ("val_accuracy", "val_loss"):
                told.metrics[name] = sum(told.metrics[f"{name}/seed-{seed}"] for seed in cfg.seeds) / len(cfg.seeds)
        if lab.main:
            with checkpoint.atomic_folder(out) as folder:
                shutil.copytree(desk / "out", folder, dirs_exist_ok=True)
            told.outputs["student"] = sha256(out)


def _named(phases: list[Phase], run: str, cfg: RunConfig) -> list[Phase]:
    """The phases, once it's sure that params.yaml speaks of no other."""
    for name in cfg.phases:
        if name not in {phase.name for phase in phases}:
            raise unknown(f"runs.{run}.phases", name, [phase.name for phase in phases])
    return phases


def _restore(folder: Path, student: Tapped, method: Method) -> None:
    weights, _ = checkpoint.load_net(folder)
    student.net.load_state_dict(weights)
    method.load_state_dict(checkpoint.load_weights(folder / "method.safetensors"))
