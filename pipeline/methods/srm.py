"""Sparse Representation Matching (SRM, "Knowledge Distillation by Sparse Representation Matching", 2021).

Phase `dictionary` (teacher alone): for each chosen stage an overcomplete dictionary D of M = mu * C atoms and one scalar bias c.
A pixel t of the teacher's map is similar to atom m by `k_m = sigmoid(t . d_m + c)`; its sparse code keeps the k = lambda * M largest
similarities and zeroes the rest; the squared error between t and `D code` is minimised. Phase `match`: the student and dictionaries
of its own learn the teacher's codes: `pixel`, cross-entropy of the student's similarities against the atom that won the teacher's pixel;
`image`, binary cross-entropy of their spatial mean against the mean of the teacher's codes; both summed over stages. Phase `distill`:
ordinary KD of the whole student; its dictionaries are dropped.

Our reading: mu, lambda and tau are what the paper chose on its transfer tasks; which of the two losses its alpha weighs it doesn't say, so
labels and KD count as in its rivals here. k is rounded, at least 1. The stages are all but the stem; where two maps differ in size, codes
and the student's pixels are averaged to the smaller one, and the label is the atom that is largest then. In the rbf kernel,
`exp(-e^c ||t - d||^2 / C)`, the scalar is its sharpness. The linear kernel has no `image`, for its similarities aren't in [0, 1]. The terms
`pixel` and `image` count 1 each. The dictionary knows nothing of the student, so that it can be learned once for a teacher.

What we found (CIFAR-10, resnet14 to resnet8, 50 images a class, 160 steps of the dictionary): the formula by itself leaves a dead one.
Pixels after a ReLU share a large mean; the atom that points along it has the largest product with every one of them, and a scalar bias
can't help the others. 7 of 32, 4 of 64 and 24 of 128 atoms win any pixel in stages 1 to 3, and the codes miss all, 95 % and 76 % of the
pixels' variance. Rates from .001 to .1, pixels or k-means centres as first atoms, and re-seeding don't cure it. `centre` does: without
their mean and with unit power, 32, 64 and 122 atoms win and 53 %, 61 % and 46 % of the variance are missed; other first atoms do no
better. It is the default; `centre: false` is the paper's form. Over 1,000 steps some atoms die again (101 of 128 live in stage 3, 112 with
`reseed`, 127 with rbf). `labels_on: scores` made no difference once atoms lived (56.7 % against 56.5 %, one seed, validation; the paper's
form 50.5 %, FitNet then KD 51.4 %, KD 44.2 %): with Adam the weak gradient of bounded similarities does no harm.
On 3,000 test images, three seeds, 120 / 150 / 240 steps a phase with 5 / 10 / 50 images a class: SRM then KD 36.0 +- 0.1, 38.7 +- 1.0,
53.3 +- 1.4; FitNet then KD 35.3 +- 0.9, 36.6 +- 1.1, 50.2 +- 0.5; KD 27.8 +- 1.4, 29.4 +- 1.4, 40.3 +- 0.6 (at 50 for twice
as many steps, so that the student moves as often: 49.6, one seed, where SRM has 53.9).
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.inputs import InputError
from pipeline.methods.base import Loss, Method, Phase, StagesConfig, Terms, Weighted, stage_pairs
from pipeline.taps import Step, Tapped, View

Kernel = Literal["sigmoid", "rbf", "linear"]
RESEED_UNTIL = 0.5  # share of the phase; atoms that are put in later would have no time to settle
TINY = 1e-12
LEARNED_WITH = ("mu", "sparsity", "kernel", "teacher_stages", "centre", "reseed")


class SparseRepresentationMatching(Method):
    class Config(StagesConfig):
        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
        mu: float = Field(2.0, gt=0, description="atoms of a dictionary for each channel of the teacher's stage; 1.5 to 4 in the paper")
        sparsity: float = Field(0.02, gt=0, le=1, description="lambda, share of the atoms in a pixel's code; 0.01 to 0.03 in the paper")
        kernel: Kernel = Field("sigmoid", description="how similar a pixel and an atom are")
        pixel: bool = Field(True, description="match each pixel's winning atom")
        image: bool = Field(True, description="match each image's mean code")
        centre: bool = Field(True, description="the teacher's pixels lose their mean and get unit power first; false: the paper's form")
        labels_on: Literal["similarities", "scores"] = Field(
            "similarities", description="what the cross-entropy of pixels reads; scores: what the kernel squashes"
        )
        reseed: int = Field(0, ge=0, description="epochs after which atoms that won no pixel are put on one; 0: never, the paper's form")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: SparseRepresentationMatching.Config = cfg
        self.pairs = stage_pairs(probe, cfg.student_stages, cfg.teacher_stages)
        if not (cfg.pixel or cfg.image):
            raise InputError("method.pixel and method.image are both false, so there's nothing to match. Set one of them to true.")
        if cfg.image and cfg.kernel == "linear":
            raise InputError("method.image needs similarities from 0 to 1, which kernel linear doesn't give. Set method.image to false.")
        coded = cfg.teacher_stages or [name for name in probe.teacher.stages if name != "stem"]  # whoever the student is
        widths = {name: probe.teacher.stages[name].shape[1] for name in coded}
        atoms = {name: max(1, round(cfg.mu * width)) for name, width in widths.items()}
        self.kept = {name: max(1, round(cfg.sparsity * count)) for name, count in atoms.items()}
        self.dictionary = nn.ModuleDict({key(name): Dictionary(widths[name], atoms[name], cfg.kernel) for name in coded})
        students = {s: probe.student.stages[s].shape[1] for s, _ in self.pairs}
        self.student_dictionary = nn.ModuleDict({key(s): Dictionary(students[s], atoms[t], cfg.kernel) for s, t in self.pairs})

    def terms(self, step: Step) -> Terms:
        return {}

    def phases(self, student: Tapped) -> list[Phase]:
        layers = dict.fromkeys(layer for s, _ in self.pairs for layer in student.upto(s))
        return [
            Phase("dictionary", self.dictionary_loss, (self.dictionary,), of_teacher=LEARNED_WITH),
            Phase("match", self.match_loss, (*layers, self.student_dictionary)),
            Phase("distill", self.loss, (student.net,)),
        ]

    def dictionary_loss(self, step: Step) -> Loss:
        """Squared error of every stage's reconstruction, mean over pixels and channels."""
        loss = {}
        for stage, kept in self.kept.items():
            dictionary, pixels = at(self.dictionary, stage), pixels_of(step.teacher.stages[stage])
            if dictionary.training:
                dictionary.follow(pixels, kept, step, centre=self.cfg.centre, reseed=self.cfg.reseed)
            prepared = dictionary.prepared(pixels)
            code, winners = dictionary.code(prepared, kept)
            error = F.mse_loss(code @ dictionary.atoms, prepared)
            if dictionary.training:
                dictionary.wins += count(winners, len(dictionary.wins))
                self.notes[f"used {stage}"] = (dictionary.wins > 0).float().mean()
                self.notes[f"error {stage}"] = error.detach() / prepared.var((0, 1), correction=0).mean().clamp_min(TINY)
            loss[stage] = Weighted(error, 1.0)
        return loss

    def match_loss(self, step: Step) -> Loss:
        losses: dict[str, list[Tensor]] = {name: [] for name in ("pixel", "image") if getattr(self.cfg, name)}
        for s, t in self.pairs:
            codes, labels, reached = self.targets(step, s, t)
            own = at(self.student_dictionary, s)
            scores = own.scores(reached)
            similarities = own.similarities(scores)
            if self.cfg.pixel:
                answers = scores if self.cfg.labels_on == "scores" else similarities
                losses["pixel"].append(F.cross_entropy(answers.flatten(0, 1), labels.flatten()))
            if self.cfg.image:
                losses["image"].append(F.binary_cross_entropy(similarities.mean(1).clamp(0, 1), codes.mean(1).clamp(0, 1)))
            self.notes[f"agreement {s}"] = (scores.detach().argmax(2) == labels).float().mean()
        return {name: Weighted(torch.stack(values).sum(), 1.0) for name, values in losses.items()}

    def targets(self, step: Step, s: str, t: str) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's codes, the atoms that win its pixels, and the student's pixels, all of one size."""
        student, teacher = step.student.stages[s], step.teacher.stages[t]
        dictionary = at(self.dictionary, t)
        with torch.no_grad():
            codes, labels = dictionary.code(dictionary.prepared(pixels_of(teacher)), self.kept[t])
        if student.shape[2:] == teacher.shape[2:]:
            return codes, labels, pixels_of(student)
        student, pooled = match_size(student, codes.transpose(1, 2).unflatten(2, teacher.shape[2:]))
        codes = pixels_of(pooled)
        return codes, codes.argmax(2), pixels_of(student)

    @torch.no_grad()
    def health(self, views: Iterable[View]) -> "dict[str, Health]":
        """How well the dictionary of each stage of the teacher codes what the teacher says of some images."""
        totals: dict[str, list[Tensor]] = {}
        for view in views:
            for stage, kept in self.kept.items():
                dictionary = at(self.dictionary, stage)
                pixels = dictionary.prepared(pixels_of(view.stages[stage]))
                code, winners = dictionary.code(pixels, kept)
                missed = (code @ dictionary.atoms - pixels).square()
                wide = pixels.flatten(0, 1).double()
                new = [count(winners, len(dictionary.wins)), missed.sum().double(), wide.sum(0), wide.square().sum()]
                totals[stage] = [old + more for old, more in zip(totals[stage], new, strict=True)] if stage in totals else new
        return {stage: Health.of(*sums) for stage, sums in totals.items()}


class Health(NamedTuple):
    """Of a dictionary; a dead one has few atoms in use, or an error near 1."""

    atoms: int
    used: int  # atoms that win at least one pixel
    effective: float  # as many atoms that win equally often would be as hard to guess
    error: float  # of the reconstruction: share of the pixels' variance

    @classmethod
    def of(cls, wins: Tensor, missed: Tensor, total: Tensor, squares: Tensor) -> "Health":
        pixels = wins.sum()
        power = squares - total.square().sum() / pixels
        effective = torch.special.entr(wins / pixels).sum().exp()
        return cls(len(wins), int((wins > 0).sum()), effective.item(), (missed / power.clamp_min(TINY)).item())


class Dictionary(nn.Module):
    """Atoms M x C and a scalar bias; pixels are B x HW x C."""

    mean: Tensor
    scale: Tensor
    wins: Tensor

    def __init__(self, channels: int, atoms: int, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.atoms = nn.Parameter(torch.randn(atoms, channels) / channels**0.5)
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("wins", torch.zeros(atoms, dtype=torch.int64))  # pixels won in this epoch
        self.followed = -1  # epoch; a phase that goes on starts at the beginning of one

    def prepared(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.scale

    def scores(self, pixels: Tensor) -> Tensor:
        """What the kernel squashes, B x HW x M; for rbf the bias is the logarithm of its sharpness."""
        if self.kernel != "rbf":
            return F.linear(pixels, self.atoms, self.bias.expand(len(self.atoms)))
        distances = pixels.square().sum(2, keepdim=True) + self.atoms.square().sum(1) - 2 * pixels @ self.atoms.T
        return distances.clamp_min(0) * (-self.bias.exp() / pixels.shape[2])

    def similarities(self, scores: Tensor) -> Tensor:
        match self.kernel:
            case "sigmoid":
                return scores.sigmoid()
            case "rbf":
                return scores.exp()
            case "linear":
                return scores

    def code(self, pixels: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """The sparse codes, B x HW x M, and the atom that wins each pixel, B x HW."""
        scores = self.scores(pixels)
        best, places = scores.topk(kept, dim=2)
        return torch.zeros_like(scores).scatter(2, places, self.similarities(best)), places[:, :, 0]

    @torch.no_grad()
    def follow(self, pixels: Tensor, kept: int, step: Step, *, centre: bool, reseed: int) -> None:
        """At the beginning of an epoch: what is taken from data and not learned."""
        if self.followed == step.epoch:
            return
        self.followed = step.epoch
        if step.epoch == 0 and centre:
            self.mean.copy_(pixels.mean((0, 1)))
            self.scale.copy_((pixels - self.mean).square().mean().sqrt().clamp_min(TINY))
        if step.epoch and reseed and step.epoch % reseed == 0 and step.progress < RESEED_UNTIL:
            self.revive(self.prepared(pixels), kept)
        self.wins.zero_()
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # every process has seen other pixels
            for tensor in (self.mean, self.scale, self.atoms):
                torch.distributed.broadcast(tensor, 0)

    def revive(self, pixels: Tensor, kept: int) -> None:
        """Atoms that won nothing are put on pixels that the others code badly."""
        code, _ = self.code(pixels, kept)
        errors = (code @ self.atoms - pixels).square().sum(2).flatten()
        dead = (self.wins == 0).nonzero()[: len(errors), 0]
        if len(dead):
            chosen = torch.multinomial(errors + TINY, len(dead))
            self.atoms[dead] = pixels.flatten(0, 1)[chosen] / kept


def at(dictionaries: nn.ModuleDict, stage: str) -> Dictionary:
    found = dictionaries[key(stage)]
    assert isinstance(found, Dictionary)
    return found


def key(stage: str) -> str:
    return stage.replace(".", "/")  # no module is named with a dot


def pixels_of(maps: Tensor) -> Tensor:
    """B x C x H x W to B x HW x C."""
    return maps.flatten(2).transpose(1, 2)


def count(winners: Tensor, atoms: int) -> Tensor:
    """How often each atom is named."""
    return torch.zeros(atoms, dtype=torch.int64, device=winners.device).index_add_(0, winners.flatten(), torch.ones_like(winners).flatten())
