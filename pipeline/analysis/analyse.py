"""What the students of a run have become, beyond their accuracy: measured and drawn on validation images
only.

`before` is a student as stage `pretrain` made it, with intermediate knowledge or untrained; `after` is the
student that stage `distill` made of it.

- Linear probes of both (SRM, table 2): a linear classifier on the frozen embedding learns from the images
  that the students learned from. `probe` is a logistic regression, whose strength is never chosen on the
  images that it is scored on; `layer` is a linear layer after 60 epochs, as in the paper. Beside them stands
  the accuracy after `distill`, which updates the whole network. (SRM's "whole network update" is that without
  a teacher: a run with `kd_weight: 0`, such as `srm_whole` of recipes/papers/srm_cifar100.yaml.) All are
  reported on validation.
- CKA of each map with each of the teacher's. If a method associates maps, also the SM-score of these pairs
  (its natural logarithm) and their mean CKA, with the weights that the method gives them at the end of its
  training (SemCKD), or with equal weights. The SM-score of a seed has that seed's weights, and is that of the
  maps before their activation if the method takes these. The record says of which images in which batches.
- Dictionaries (SRM), where networks look (Grad-CAM), and transfer to other images if `transfer` names some.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.analysis import COMPARED, associations, dictionaries
from pipeline.analysis.associations import Weights
from pipeline.analysis.cka import batchwise_cka
from pipeline.analysis.dictionaries import HasDictionaries
from pipeline.analysis.drawing import HeatMap, heat_maps
from pipeline.analysis.gradcam import side_by_side
from pipeline.analysis.linear_probe import cross_probe, embeddings, layer_probe
from pipeline.analysis.mismatch import mismatch
from pipeline.analysis.transfer import transfer_scores
from pipeline.checkpoint import best_seed, load_facts, student_folders
from pipeline.data.sources import DataConfig
from pipeline.files import atomic_folder, sha256
from pipeline.records.record import Record, Result
from pipeline.runs.context import Context
from pipeline.runs.run import Run
from pipeline.runs.student import load_initial
from pipeline.settings import InputError
from pipeline.taps.answer import Answer
from pipeline.taps.tapped import Tapped

BATCH = 128
FEWEST = 4  # images in a batch that an estimate without bias needs


@dataclass(frozen=True)
class Subject:
    """The networks to analyse, students by seed."""

    run: Run
    context: Context
    teacher: Tapped
    before: dict[int, Tapped]
    after: dict[int, Tapped]
    best: int  # seed

    def answers(self, *nets: Tapped) -> Iterator[tuple[Answer, ...]]:
        """The answers of these networks to the same validation images, batch by batch."""
        rows = self.context.validation.rows[:COMPARED]
        batches = [
            part for start in range(0, len(rows), BATCH) if len(part := rows[start : start + BATCH]) >= FEWEST
        ]
        if not batches:
            raise InputError(
                f"analysis.{self.run.name}: {len(rows)} validation images are too few to compare networks. "
                "Raise data.val."
            )
        for part in batches:
            with torch.no_grad():
                yield tuple(net(self.context.images(part, net.input)) for net in nets)


@dataclass
class Part:
    """What one part of the analysis returns."""

    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)  # file -> caption


def analyse(
    run: Run,
    *,
    data: Path,
    teacher: Path,
    initial: Path,
    students: Path,
    distilled: Record,
    images: int,
    transfer: DataConfig | None,
    out: Path,
) -> Result:
    """Numbers, and a folder `out` of pictures.

    `distilled` is the record of the run's stage distill. `images` is the number of images in the picture that
    shows where networks look.
    """
    folders = {"teacher": teacher, "initial": initial, "students": students}
    subject = _load_subject(run, data, **folders)
    with atomic_folder(out) as pictures:
        parts = [
            _probes(subject, students),
            *_maps(subject, distilled, pictures),
            _dictionaries(subject, initial, pictures),
        ]
        if images:
            parts.append(_looks(subject, images, pictures, teacher_classes=load_facts(teacher)["classes"]))
        if transfer:
            parts.append(_transfer(subject, transfer))
    details: dict[str, Any] = {"warnings": [], "pictures": {}}
    metrics: dict[str, float] = {}
    for part in parts:
        metrics |= part.metrics
        details |= part.details
        details["warnings"] += part.warnings
        details["pictures"] |= part.pictures
    inputs = {"data": subject.context.store.content} | {name: sha256(path) for name, path in folders.items()}
    return Result(metrics=metrics, details=details, inputs=inputs, outputs={"pictures": sha256(out)})


def _load_subject(run: Run, data: Path, *, teacher: Path, initial: Path, students: Path) -> Subject:
    context, folders = Context.of_students(data, run.protocol, run.augment), student_folders(students)
    return Subject(
        run,
        context,
        teacher=context.load_network(teacher),
        before={seed: context.load_network(initial / folder.name) for seed, folder in folders.items()},
        after={seed: context.load_network(folder) for seed, folder in folders.items()},
        best=best_seed(students),
    )


def _probes(subject: Subject, students: Path) -> Part:
    accuracies: dict[str, dict[int, float]] = {}
    for when, nets in (("before", subject.before), ("after", subject.after)):
        of_seeds = {seed: _probe(subject, net) for seed, net in nets.items()}
        accuracies[f"probe_{when}"] = {seed: probe for seed, (probe, _) in of_seeds.items()}
        accuracies[f"layer_{when}"] = {seed: layer for seed, (_, layer) in of_seeds.items()}
    accuracies["whole_network"] = {
        seed: load_facts(folder)["val_accuracy"] for seed, folder in student_folders(students).items()
    }
    part = Part(details={"probe": accuracies})
    for name, scores in accuracies.items():
        part.metrics |= _summary(name, scores)
    return part


def _probe(subject: Subject, net: Tapped) -> tuple[float, float]:
    """The accuracies of a logistic regression and of a linear layer."""
    context, store = subject.context, subject.context.store
    train, validation = (
        (embeddings(net, store.images, subset.rows), subset.labels)
        for subset in (context.subset, context.validation)
    )
    return cross_probe(*train, *validation), layer_probe(*train, *validation)


def _maps(subject: Subject, distilled: Record, folder: Path) -> list[Part]:
    """How similar the maps of student and teacher are, and how much each learned from each."""
    of_student, of_teacher = list(next(iter(subject.after.values())).taps), list(subject.teacher.taps)
    similarity = {"before": _mean_cka(subject, subject.before), "after": _mean_cka(subject, subject.after)}
    panels = [
        HeatMap(f"{when} distillation", of_student, of_teacher, values) for when, values in similarity.items()
    ]
    heat_maps(panels, folder / "maps.png", across="maps of the teacher", down="maps of the student")
    part = Part(details={"maps": {"student": of_student, "teacher": of_teacher} | similarity})
    part.pictures["maps.png"] = (
        "How similar the maps of student and teacher are (CKA; 1: the same except for rotation and scale), "
        "mean over seeds."
    )
    cka = {
        (s, t): value
        for s, row in zip(of_student, similarity["after"], strict=True)
        for t, value in zip(of_teacher, row, strict=True)
    }
    return [part, _associations(subject, distilled, cka, folder)]


def _mean_cka(subject: Subject, students: Mapping[int, Tapped]) -> list[list[float]]:
    """Mean over seeds: a row for each map of the student, a column for each of the teacher."""
    of_seeds = [
        batchwise_cka((student, teacher) for student, teacher in subject.answers(net, subject.teacher))
        for net in students.values()
    ]
    mean: list[list[float]] = torch.stack(of_seeds).mean(0).tolist()
    return mean


def _associations(
    subject: Subject, distilled: Record, cka: Mapping[tuple[str, str], float], folder: Path
) -> Part:
    """SM-score and CKA of the pairs of maps that the method associates; empty if it associates none."""
    learned = associations.learned(distilled)
    weights = associations.mean(learned) or associations.fixed(distilled)
    if not weights:
        return Part()
    part = Part(details={"associations": [[*pair, weight] for pair, weight in weights.items()]})
    part.details["sm_score"] = {
        "split": "validation",
        "images": min(len(subject.context.validation.rows), COMPARED),
        "batch": BATCH,
        "before_activation": _is_before_activation(subject.run),
    }
    scores = {
        seed: _mismatch(subject, net, learned.get(seed, weights)) for seed, net in subject.after.items()
    }
    part.metrics = _summary(
        "sm_score", {seed: math.log(score) for seed, score in scores.items() if score > 0}
    )
    total = sum(weight * cka[pair] for pair, weight in weights.items())
    part.metrics["cka"] = total / sum(weights.values())
    if learned:
        part.warnings = associations.warnings(weights)
        associations.draw(weights, folder / "associations.png")
        part.pictures["associations.png"] = (
            "How much each map of the student learned from each of the teacher at the end, mean over images "
            "and seeds; rows sum to 1."
        )
    return part


def _mismatch(subject: Subject, net: Tapped, weights: Weights) -> float:
    """Mean over batches."""
    scores = []
    for student, teacher in subject.answers(net, subject.teacher):
        if _is_before_activation(subject.run):
            student, teacher = (_before_activation(each) for each in (student, teacher))
        scores.append(mismatch(student, teacher, weights))
    return statistics.fmean(scores)


def _before_activation(answer: Answer) -> Answer:
    return replace(answer, maps={**answer.maps, **answer.preactivations})


def _is_before_activation(run: Run) -> bool:
    """Whether the run's method takes maps before their activation."""
    return bool(getattr(run.method, "preactivation", False))


def _dictionaries(subject: Subject, initial: Path, folder: Path) -> Part:
    """The state of the method's dictionaries; empty if it has none."""
    found = _health(subject, initial)
    if not found:
        return Part()
    part = Part(
        details={
            "dictionaries": {
                seed: {name: health._asdict() for name, health in of_maps.items()}
                for seed, of_maps in found.items()
            }
        }
    )
    best = found[subject.best]
    for name in best:
        of_seeds = {seed: of_maps[name] for seed, of_maps in found.items()}
        used = {seed: health.used / health.atoms for seed, health in of_seeds.items()}
        part.metrics |= _summary(f"atoms_used/{name}", used)
        error = {seed: health.error for seed, health in of_seeds.items()}
        part.metrics |= _summary(f"dictionary_error/{name}", error)
        dead = sum(map(dictionaries.is_dead, of_seeds.values()))
        if dead:
            part.warnings.append(
                f"The dictionary of {name} is dead in {dead} of {len(found)} seeds, so its labels say little "
                f"about an image (seed {subject.best}: {dictionaries.words(best[name])})."
            )
    dictionaries.draw(best, folder / "dictionaries.png")
    part.pictures["dictionaries.png"] = (
        f"How often each atom of the dictionaries wins a pixel of the teacher's maps (seed {subject.best})."
    )
    return part


def _health(subject: Subject, initial: Path) -> dict[int, Mapping[str, dictionaries.Health]]:
    """By seed and map of the teacher."""
    run, found = subject.run, {}
    for seed, student in subject.before.items():
        method = subject.context.build_method(run.method, student, subject.teacher, run.partner)
        owner = next((module for module in method.modules() if isinstance(module, HasDictionaries)), None)
        if owner is None:
            return {}
        load_initial(initial / f"seed-{seed}", student, method)
        found[seed] = owner.health(answer for (answer,) in subject.answers(subject.teacher))
    return found


def _looks(subject: Subject, count: int, folder: Path, *, teacher_classes: Sequence[str]) -> Part:
    context, store, student_classes = subject.context, subject.context.store, subject.context.classes
    chosen = _one_of_each(context.validation.labels, count)
    nets: dict[str, tuple[Tapped, Sequence[str]]] = {"teacher": (subject.teacher, teacher_classes)}
    nets |= {f"student, seed {seed}": (net, student_classes) for seed, net in subject.after.items()}
    names = [student_classes[label] for label in context.validation.labels[chosen]]
    images = np.asarray(store.images[context.validation.rows[chosen]])
    side_by_side(nets, images, names, folder / "grad_cam.png")
    caption = "Where teacher and students look when they predict a class (Grad-CAM), on validation images."
    return Part(pictures={"grad_cam.png": caption})


def _one_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of `count` images: the first image of each class, then the second of each, and so on.

    With more classes than `count`, the first image of some classes, evenly spread.
    """
    present = np.unique(labels)
    if count < len(present):
        present = present[np.linspace(0, len(present) - 1, count).round().astype(int)]
    ranks = np.empty(len(labels), dtype=int)
    for label in present:
        ranks[labels == label] = np.arange((labels == label).sum())
    wanted = np.flatnonzero(np.isin(labels, present))
    return wanted[np.lexsort((labels[wanted], ranks[wanted]))][:count]


def _transfer(subject: Subject, other: DataConfig) -> Part:
    groups = {"before": subject.before, "after": subject.after, "teacher": {0: subject.teacher}}
    nets = {f"{group}/{seed}": net for group, of_seeds in groups.items() for seed, net in of_seeds.items()}
    scores, facts = transfer_scores(other, nets)
    part = Part(details={"transfer": facts})
    for group, of_seeds in groups.items():
        accuracies = {seed: scores[f"{group}/{seed}"].accuracy for seed in of_seeds}
        part.metrics |= _summary(f"transfer_{group}", accuracies)
    return part


def _summary(name: str, values: Mapping[int, float]) -> dict[str, float]:
    """The mean over seeds and, with several seeds, the spread; empty without values."""
    if not values:
        return {}
    spread = {f"{name}_spread": statistics.stdev(values.values())} if len(values) > 1 else {}
    return {name: statistics.fmean(values.values())} | spread
