"""Networks, data and a method put together and trained, seed by seed: what the training stages call."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from pipeline import checkpoint, methods, nets, saved
from pipeline.code import library
from pipeline.combined import Combined, build
from pipeline.config import Params
from pipeline.data.batches import Batches
from pipeline.data.protocol import ProtocolConfig, among, class_sets, describe, subset
from pipeline.data.store import Store
from pipeline.functional import normalise
from pipeline.inputs import InputError, unknown
from pipeline.live import shown
from pipeline.locks import locked
from pipeline.methods.base import Method, MethodConfig, Phase
from pipeline.nets.start import load_start
from pipeline.overview import overview, table
from pipeline.record import Record, sha256
from pipeline.taps import Step, Tapped, resting
from pipeline.train import Curves, TrainConfig, fit

KNOWLEDGE = "knowledge.safetensors"


class Lab:
    """What all seeds of a stage share: the data and the device."""

    def __init__(self, params: Params, data: Path, protocol: ProtocolConfig, whose: Literal["teacher", "student"] = "student") -> None:
        self.params = params
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # else several processes on CPUs would not find each other
        self.device = self.accelerator.device
        self.store = Store.open(data)
        sets = dict(zip(("teacher", "student"), class_sets(self.store.classes, params.protocol), strict=True))
        ids, self.cross_task = sets[whose], sets["teacher"] != sets["student"]
        self.sample = subset(self.store.labels, self.store.indices("train"), protocol, classes=self.store.classes, ids=ids)
        self.labels = torch.as_tensor(self.sample.labels)
        self.validation = among(self.store.labels, self.store.indices("val"), ids)
        self.tell: Callable[[], None] = lambda: None  # that there is more in the record
        self.facts = {"classes": [self.store.classes[n] for n in ids], "channels": self.store.channels, "size": self.store.size}

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def images(self, rows: Any) -> torch.Tensor:
        pixels = torch.as_tensor(self.store.images[rows]).to(self.device)
        return normalise(pixels, self.store.mean, self.store.std)

    def net(self, name: str) -> nn.Module:
        return nets.build(name, len(self.sample.classes), self.store.channels)

    def tapped(self, net: nn.Module, taps: dict[str, str]) -> Tapped:
        return Tapped(net.to(self.device), self.images(self.sample.rows[:2]), taps=taps)

    def probe(self, student: Tapped, teacher: Tapped | None) -> Step:
        """A small batch for methods to read shapes from; it leaves no trace in the networks."""
        rows = self.sample.rows[:4]
        index = torch.arange(len(rows), device=self.device)
        return Step(self.images(rows), self.labels[: len(rows)].to(self.device), index, student, teacher)

    def method(self, cfg: MethodConfig, student: Tapped, teacher: Tapped | None, partner: MethodConfig | None = None) -> Method:
        with resting(student.net):
            return build(cfg, partner, self.probe(student, teacher), self.labels).to(self.device)

    def overview(self, student: Tapped, teacher: Tapped, method: Method) -> list[list[str]]:
        """Shapes of both networks and what is matched with what: printed before the first step, kept in the record."""
        with resting(student.net):
            probe = self.probe(student, teacher)
            rows = overview(probe.student, probe.teacher, method.matched())
        if self.main:
            print(table(rows), flush=True)
        return rows

    def batches(self, cfg: TrainConfig, seed: int) -> Batches:
        shard = (self.accelerator.process_index, self.accelerator.num_processes)
        return Batches(
            self.store.images, self.sample, batch_size=cfg.batch_size, seed=seed, mean=self.store.mean, std=self.store.std,
            augment=self.params.augment, device=self.device, shard=shard,
        )  # fmt: skip

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Accuracy and cross-entropy on the validation split."""
        right = loss = 0.0
        with resting(net):
            for start in range(0, len(self.validation.rows), 512):
                logits = net(self.images(self.validation.rows[start : start + 512])).float()
                labels = torch.as_tensor(self.validation.labels[start : start + 512]).to(self.device)
                right += (logits.argmax(1) == labels).sum().item()
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
        if loss != loss:
            raise InputError("The student's answers on the validation images aren't numbers any more. Lower the learning rate (train.lr).")
        return {"val_accuracy": right / len(self.validation.rows), "val_loss": loss / len(self.validation.rows)}

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
        told: Record,
        curve: str,
        folder: Path,
        label: str,
    ) -> None:
        """One phase; its order of images, views and random numbers depend on the seed and the phase's name alone."""

        def reached(curves: Curves) -> None:
            told.curves[curve] = curves
            self.tell()

        own_seed = zlib.crc32(f"{seed}/{phase.name}".encode())
        told.curves[curve] = curves = fit(
            phase, self.batches(cfg, own_seed), cfg, student=student, teacher=teacher, method=method, accelerator=self.accelerator,
            seed=own_seed, validate=self.validate if select else None, reached=reached,
            state_file=folder / f"{phase.name}.state", label=f"{label} {phase.name}",
        )  # fmt: skip
        if self.main:
            best = f", validation accuracy {max(curves['val_accuracy']):.1%}" if select else f", loss {curves['loss'][-1]:.4g}"
            print(
                f"{label} {phase.name}: {cfg.epochs} epochs on {len(self.labels)} images, {curves['seconds'][-1]:.1f} s{best}", flush=True
            )

    def teacher(self, folder: Path) -> Tapped:
        net, facts = saved.load(folder)
        return self.tapped(net, facts["taps"])

    @contextmanager
    def desk(self, work: Path, told: Record, **depends: Any) -> Iterator[Path]:
        """A work folder of this stage with exactly these inputs and this code; it outlives a stop and goes when the stage is done."""
        settings = [told.stage, told.name, self.store.content, self.params.augment.model_dump(), depends, library()]
        key = json.dumps(settings, sort_keys=True, default=str)
        folder = work / f"{told.stage}-{told.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.main:
            yield folder
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder / "lock", wait=False))
            except BlockingIOError as error:
                what = f"{told.stage} {told.name} is already being trained by another process"
                raise InputError(f"{what} (lock {folder / 'lock'}). Wait for it, or stop it.") from error
            self.tell = stack.enter_context(shown(told, work / "live" / f"{folder.name}.json"))
            try:
                yield folder
            except InputError:
                if not any(file.name != "lock" for file in folder.iterdir()):  # refused before there was anything to keep
                    shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)


def train_teacher(params: Params, name: str, told: Record, *, data: Path, out: Path, work: Path) -> None:
    """`told` is filled with what there is to tell; so below."""
    cfg, lab = params.teacher(name), Lab(params, data, ProtocolConfig(), "teacher")
    told.inputs["data"] = lab.store.content
    told.details["sample"] = describe(lab.sample, lab.store.labels, lab.store.classes)
    with lab.desk(work, told, cfg=cfg.model_dump(), classes=lab.sample.classes) as desk:
        torch.manual_seed(0)
        net = lab.net(cfg.net)
        load_start(net, cfg.start, name=cfg.net, field=f"teachers.{name}.start")
        teacher = lab.tapped(net, cfg.taps)
        method = lab.method(methods.load("ce").Config(name="ce"), teacher, None)
        (phase,) = method.phases(teacher)
        lab.fit(
            phase, cfg.train, student=teacher, teacher=None, method=method, seed=0, select=True, told=told, curve="teacher", folder=desk,
            label=f"teacher {name}",
        )  # fmt: skip
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
    lab = Lab(params, data, protocol)
    guide = lab.teacher(teacher)
    told.inputs |= {"data": lab.store.content, "teacher": sha256(teacher)} | ({"initial": sha256(initial)} if initial else {})
    told.details["sample"] = describe(lab.sample, lab.store.labels, lab.store.classes)
    depends = {"run": cfg, "train": params.train, "protocol": protocol, "student": student_cfg}
    with lab.desk(work, told, **{name: part.model_dump() for name, part in depends.items()}, inputs=told.inputs) as desk:
        for seed in cfg.seeds:
            torch.manual_seed(seed)
            student = lab.tapped(lab.net(student_cfg.net), student_cfg.taps)
            method = lab.method(params.method(run), student, guide, params.partner(run))
            if lab.cross_task and any(theirs == "logits" for _, theirs in method.matched()):
                raise InputError(
                    f"runs.{run}.method matches the teacher's logits, but protocol.class_overlap gives the two different classes. "
                    "Set kd_weight to 0, choose a method that reads no logits, such as refilled, or set class_overlap to all."
                )
            phases = _named(method.phases(student), cfg.phases, f"runs.{run}.phases")
            learned = _recall(teacher, method, run)
            for name in cfg.phases.keys() & set(learned):
                raise InputError(f"runs.{run}.phases.{name}: knowledge.{cfg.teacher} has learned this phase; it is set there.")
            if initial is not None:
                restore(initial / f"seed-{seed}", student, method)
            if seed == cfg.seeds[0]:
                told.details["overview"] = lab.overview(student, guide, method)
            for phase in phases[-1:] if last else [phase for phase in phases[:-1] if phase.name not in learned]:
                lab.fit(
                    phase, params.phase(run, phase.name), student=student, teacher=guide, method=method, seed=seed, select=last,
                    told=told, curve=f"{phase.name}/seed-{seed}", folder=desk / f"seed-{seed}", label=f"{run} seed {seed}",
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


def learn(params: Params, name: str, told: Record, *, data: Path, teacher: Path, out: Path, work: Path) -> None:
    """A copy of the teacher with what a method's phases learn of the teacher alone: the runs that name it as their teacher skip these."""
    cfg, lab = params.knowledge[name], Lab(params, data, params.protocol)
    guide = lab.teacher(teacher)
    told.inputs |= {"data": lab.store.content, "teacher": sha256(teacher)}
    told.details["sample"] = describe(lab.sample, lab.store.labels, lab.store.classes)
    depends = {"knowledge": cfg.model_dump(), "train": params.train.model_dump(), "protocol": params.protocol.model_dump()}
    with lab.desk(work, told, **depends, inputs=told.inputs) as desk:
        torch.manual_seed(cfg.seed)
        stand_in = lab.teacher(teacher)  # there is no student yet, and these phases don't look at one
        method = lab.method(params.knowledge_method(name), stand_in, guide)
        phases = [phase for phase in method.phases(stand_in) if phase.of_teacher]
        if not phases:
            raise InputError(
                f"knowledge.{name}.method.name: no phase of {method.cfg.name} learns of the teacher alone. Take this entry away, "
                f"and let the runs name {cfg.teacher} as their teacher."
            )
        settings = method.cfg.model_dump(mode="json")
        read = sorted({setting for phase in phases for setting in phase.of_teacher})
        knows = {"method": method.cfg.name, "phases": [phase.name for phase in phases], "settings": {key: settings[key] for key in read}}
        learned: dict[str, torch.Tensor] = {}
        for phase in _named(phases, cfg.phases, f"knowledge.{name}.phases"):
            lab.fit(
                phase, params.knowledge_phase(name, phase.name), student=stand_in, teacher=guide, method=method, seed=cfg.seed,
                select=False, told=told, curve=f"{phase.name}/seed-{cfg.seed}", folder=desk, label=f"knowledge {name}",
            )  # fmt: skip
            inside = {id(tensor) for module in phase.trains for tensor in (*module.parameters(), *module.buffers())}
            learned |= {key: tensor for key, tensor in method.state_dict(keep_vars=True).items() if id(tensor) in inside}
        if lab.main:
            with checkpoint.atomic_folder(out) as folder:
                weights, facts = checkpoint.load_net(teacher)
                checkpoint.save_net(folder, weights, facts | {"knows": knows})
                checkpoint.save_weights(folder / KNOWLEDGE, {key: tensor.detach() for key, tensor in learned.items()})
            told.outputs["knowledge"] = sha256(out)


def _recall(teacher: Path, method: Method, run: str) -> list[str]:
    """Into the method what the teacher's knowledge holds for it; the names of the phases that are thereby done."""
    knows = checkpoint.load_net(teacher)[1].get("knows", {})
    part = method.main if isinstance(method, Combined) else method
    if knows.get("method") != part.cfg.name:
        return []
    own = part.cfg.model_dump(mode="json")
    for key, value in knows["settings"].items():
        if own[key] != value:
            raise InputError(
                f"runs.{run}.method.{key} is {own[key]!r}, but what the teacher {teacher.name} knows was learned with {value!r}. "
                f"Set it under knowledge.{teacher.name}.method alone, or give the run its teacher without that knowledge."
            )
    part.load_state_dict(checkpoint.load_weights(teacher / KNOWLEDGE), strict=False)
    return knows["phases"]


def _named(phases: list[Phase], given: Collection[str], where: str) -> list[Phase]:
    """The phases, once it's sure that params.yaml speaks of no other."""
    for name in given:
        if name not in {phase.name for phase in phases}:
            raise unknown(where, name, [phase.name for phase in phases])
    return phases


def restore(folder: Path, student: Tapped, method: Method) -> None:
    weights, _ = checkpoint.load_net(folder)
    student.net.load_state_dict(weights)
    method.load_state_dict(checkpoint.load_weights(folder / "method.safetensors"))
