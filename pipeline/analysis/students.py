"""What the students of a run have become, beyond their accuracy: measured and drawn on validation images alone.

`before` is a student as stage `pretrain` left it, with intermediate knowledge or untrained, `after` as stage `distill` did.

- Linear probes of both (SRM, table 2): a linear classifier on the frozen embedding learns from the images the run's students learned from.
  Beside them stands the accuracy after `distill`, which updates the whole network; SRM's "whole network update" is that without a teacher:
  a run with `kd_weight: 0`. All are chosen and told on validation.
- CKA of every stage with each of the teacher's; where a method associates stages also the SM-score of these pairs (the natural logarithm)
  and their mean CKA, weighted as the method weighs them at the end of its training (SemCKD) or all alike.
- Dictionaries (SRM), where students look (Grad-CAM), and transfer to other data if that is asked for.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import methods, saved
from pipeline.analysis import associations, dictionaries
from pipeline.analysis.associations import Weights
from pipeline.analysis.cka import batchwise_cka
from pipeline.analysis.dictionaries import Coder
from pipeline.analysis.drawing import HeatMap, heat_maps
from pipeline.analysis.gradcam import side_by_side
from pipeline.analysis.mismatch import mismatch
from pipeline.analysis.probe import embeddings, linear_probe
from pipeline.analysis.transfer import transfer
from pipeline.checkpoint import atomic_folder
from pipeline.config import Params
from pipeline.data.sources import DataConfig
from pipeline.inputs import InputError
from pipeline.record import Record, sha256
from pipeline.runs import Lab, restore
from pipeline.taps import Tapped, View

MOST = 512  # images that stages are compared on
BATCH = 128
FEWEST = 4  # images in a batch that an estimate without bias needs


@dataclass(frozen=True)
class Subject:
    """The networks that are looked into, students by seed."""

    run: str
    lab: Lab
    teacher: Tapped
    before: dict[int, Tapped]
    after: dict[int, Tapped]
    best: int  # seed

    def views(self, *nets: Tapped) -> Iterator[tuple[View, ...]]:
        """What these networks say of the same validation images, batch by batch."""
        rows = self.lab.validation.rows[:MOST]
        batches = [part for start in range(0, len(rows), BATCH) if len(part := rows[start : start + BATCH]) >= FEWEST]
        if not batches:
            raise InputError(f"analysis.{self.run}: {len(rows)} validation images are too few to compare networks by. Raise data.val.")
        for part in batches:
            images = self.lab.images(part)
            with torch.no_grad():
                yield tuple(net(images) for net in nets)


def analyse(
    params: Params, run: str, told: Record, *, data: Path, teacher: Path, initial: Path, students: Path, distilled: Record, out: Path
) -> None:
    """`told` is filled with the numbers, the folder `out` with pictures; `distilled` is the record of the run's stage distill."""
    lab = Lab(params, data, params.run_protocol(run))
    folders = {saved.seed_of(folder): folder for folder in sorted(students.glob("seed-*"), key=saved.seed_of)}
    before = {seed: lab.teacher(initial / folder.name) for seed, folder in folders.items()}
    after = {seed: lab.teacher(folder) for seed, folder in folders.items()}
    subject = Subject(run, lab, lab.teacher(teacher), before, after, saved.seed_of(saved.best_seed(students)))
    told.inputs = {"data": lab.store.content, "teacher": sha256(teacher), "initial": sha256(initial), "students": sha256(students)}
    told.details = {"warnings": [], "pictures": {}}
    with atomic_folder(out) as folder:
        _probe(subject, told, {seed: saved.load(path)[1]["val_accuracy"] for seed, path in folders.items()})
        _stages(subject, told, distilled, folder)
        if any(hasattr(methods.load(method.name), "health") for method in (params.method(run), params.partner(run)) if method):
            _dictionaries(subject, told, params, initial, folder)
        if images := params.analysis[run].images:
            _looks(subject, told, images, folder, taught=saved.load(teacher)[1]["classes"])
        if other := params.transfer(run):
            _transfer(subject, told, other)
    told.outputs["pictures"] = sha256(out)


def _probe(subject: Subject, told: Record, whole: Mapping[int, float]) -> None:
    lab = subject.lab

    def accuracy(net: Tapped) -> float:
        splits = []
        for sample in (lab.sample, lab.validation):
            splits += [embeddings(net, lab.store.images, sample.rows, mean=lab.store.mean, std=lab.store.std), sample.labels]
        return linear_probe(*splits, *splits[2:]).accuracy

    found = {
        "probe_before": {seed: accuracy(net) for seed, net in subject.before.items()},
        "probe_after": {seed: accuracy(net) for seed, net in subject.after.items()},
        "whole_network": dict(whole),
    }
    told.details["probe"] = found
    for name, accuracies in found.items():
        told.metrics |= _summary(name, accuracies)


def _stages(subject: Subject, told: Record, distilled: Record, folder: Path) -> None:
    ours, theirs = list(next(iter(subject.after.values())).taps), list(subject.teacher.taps)
    alike = {}
    for when, nets in (("before", subject.before), ("after", subject.after)):
        each = [batchwise_cka((student, teacher) for student, teacher in subject.views(net, subject.teacher)) for net in nets.values()]
        alike[when] = torch.stack(each).mean(0).tolist()
    told.details["stages"] = {"student": ours, "teacher": theirs} | alike
    panels = [HeatMap(f"{when} distillation", ours, theirs, alike[when]) for when in ("before", "after")]
    heat_maps(panels, folder / "stages.png", across="stages of the teacher", down="stages of the student")
    told.details["pictures"]["stages.png"] = (
        "How alike the stages of student and teacher are (CKA; 1: the same but for rotation and scale), mean over seeds."
    )
    learned = associations.learned(distilled)
    weights = learned or associations.fixed(distilled)
    if not weights:
        return
    told.details["associations"] = [[*pair, weight] for pair, weight in weights.items()]
    scores = {seed: _mismatch(subject, net, weights) for seed, net in subject.after.items()}
    told.metrics |= _summary("sm_score", {seed: math.log(score) for seed, score in scores.items() if score > 0})
    pairs = [(weight, alike["after"][ours.index(s)][theirs.index(t)]) for (s, t), weight in weights.items()]
    told.metrics["cka"] = sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
    if learned:
        told.details["warnings"] += associations.warnings(learned)
        associations.draw(weights, folder / "associations.png")
        told.details["pictures"]["associations.png"] = (
            "How much each stage of the student learned from each of the teacher at the end, mean over images and seeds; rows sum to 1."
        )


def _mismatch(subject: Subject, net: Tapped, weights: Weights) -> float:
    return statistics.fmean(mismatch(student, teacher, weights) for student, teacher in subject.views(net, subject.teacher))


def _dictionaries(subject: Subject, told: Record, params: Params, initial: Path, folder: Path) -> None:
    found = {}
    for seed, student in subject.before.items():
        method = subject.lab.method(params.method(subject.run), student, subject.teacher, params.partner(subject.run))
        restore(initial / f"seed-{seed}", student, method)
        coder = next(part for part in method.modules() if isinstance(part, Coder))
        found[seed] = dictionaries.conditions(coder, (view for (view,) in subject.views(subject.teacher)))
    told.details["dictionaries"] = {seed: {stage: of._asdict() for stage, of in each.items()} for seed, each in found.items()}
    for stage in found[subject.best]:
        told.metrics |= _summary(f"atoms_used/{stage}", {seed: each[stage].used / each[stage].atoms for seed, each in found.items()})
        told.metrics |= _summary(f"dictionary_error/{stage}", {seed: each[stage].error for seed, each in found.items()})
    for stage, of in found[subject.best].items():
        dead = sum(each[stage].dead for each in found.values())
        if dead:
            told.details["warnings"].append(
                f"The dictionary of {stage} is dead in {dead} of {len(found)} seeds (seed {subject.best}: {of.words()})."
            )
    dictionaries.draw(found[subject.best], folder / "dictionaries.png")
    told.details["pictures"]["dictionaries.png"] = (
        f"How often each atom of the dictionaries wins a pixel of the teacher's stages (seed {subject.best})."
    )


def _looks(subject: Subject, told: Record, count: int, folder: Path, *, taught: Sequence[str]) -> None:
    lab = subject.lab
    learnt = [lab.store.classes[n] for n in lab.sample.classes]
    chosen = _one_of_each(lab.validation.labels, count)
    nets = {"teacher": (subject.teacher, taught)} | {f"student, seed {seed}": (net, learnt) for seed, net in subject.after.items()}
    names = [learnt[label] for label in lab.validation.labels[chosen]]
    images = np.asarray(lab.store.images[lab.validation.rows[chosen]])
    side_by_side(nets, images, names, folder / "grad_cam.png", mean=lab.store.mean, std=lab.store.std)
    told.details["pictures"]["grad_cam.png"] = "Where teacher and students look for the answer they give (Grad-CAM), on validation images."


def _one_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of the first image of as many classes as asked for, evenly spread over them; then the second ones, and so on."""
    present = np.unique(labels)
    if count < len(present):
        present = present[np.linspace(0, len(present) - 1, count).round().astype(int)]
    ranks = np.empty(len(labels), dtype=int)
    for label in present:
        ranks[labels == label] = np.arange((labels == label).sum())
    wanted = np.flatnonzero(np.isin(labels, present))
    return wanted[np.lexsort((labels[wanted], ranks[wanted]))][:count]


def _transfer(subject: Subject, told: Record, other: DataConfig) -> None:
    groups = {"before": subject.before, "after": subject.after, "teacher": {0: subject.teacher}}
    nets = {f"{group}/{seed}": net for group, each in groups.items() for seed, net in each.items()}
    scores, told.details["transfer"] = transfer(other, nets, subject.lab.store)
    for group, each in groups.items():
        told.metrics |= _summary(f"transfer_{group}", {seed: scores[f"{group}/{seed}"].accuracy for seed in each})


def _summary(name: str, values: Mapping[int, float]) -> dict[str, float]:
    """Mean over seeds and, where there are several, spread; nothing of nothing."""
    if not values:
        return {}
    spread = {f"{name}_spread": statistics.stdev(values.values())} if len(values) > 1 else {}
    return {name: statistics.fmean(values.values())} | spread
