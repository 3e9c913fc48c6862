"""Sparse Representation Matching (SRM, "Knowledge Distillation by Sparse Representation Matching", 2021).

A pixel of a map is the vector t of its C values at one position.

Phase `dictionary` reads only the teacher. Each chosen map gets an overcomplete dictionary D (M x C) of
`M = mu * C` atoms d_m, and one scalar bias c. The similarity of a pixel and an atom is
`k_m = sigmoid(t . d_m + c)`. The sparse code of a pixel (M numbers) keeps the k = `lambda * M` largest
similarities and has 0 elsewhere. What is minimised is the squared error between t and `D^T code`, mean over
pixels and channels, sum over maps.

Phase `match` trains the student's layers up to its last matched map, and dictionaries of its own, to give the
teacher's codes. Both terms are sums over maps:

- `pixel`: the cross-entropy of the student's similarities; the label is the atom that wins the teacher's
  pixel, which means that it has the largest similarity
- `image`: the binary cross-entropy of the student's similarities, mean over positions; the target is the mean
  of the teacher's codes

Phase `distill` is ordinary KD of the whole student, without its dictionaries.

`centre` takes away the mean of the teacher's pixels and scales them to unit power before they are coded.
`preactivation` takes the maps of both networks before their activation, where they end in one. The paper's
form is `centre: false` on maps that no ReLU has seen: it taps the outputs of down-sampling layers.

Our reading: mu, lambda and tau are the paper's choices on its transfer tasks. Its alpha weighs KD, and the
labels have the rest; of its values 0.25, 0.5 and 0.75, ours is 0.75. The terms `pixel` and `image` count 1
each. k is rounded down, and at least 1. All maps but the stem are matched. To match the pooled embedding too,
tap the layer that pools, which gives a map of 1 x 1. If two maps differ in size, codes and the student's
pixels are averaged to the smaller size, and the label is the atom with the largest mean. Kernel `rbf` is
`exp(-e^c ||t - d_m||^2 / C)`, where the scalar c sets the sharpness. Kernel `linear` is `t . d_m + c`. It
cannot have the term `image`, because its similarities are not between 0 and 1. The teacher's dictionaries do
not depend on the student, so they can be learned once for many students.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import pool_to
from pipeline.methods import Loss, MapMethod, MapsConfig, Phase, Terms, Weighted
from pipeline.settings import InputError
from pipeline.taps import processes
from pipeline.taps.answer import Answer, Frozen
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

Kernel = Literal["sigmoid", "rbf", "linear"]
RESEED_UNTIL = 0.5  # share of the phase; atoms that are moved later would have no time to settle
TINY = 1e-12
HALF_HOLDS = 2048  # so far, whole numbers are exact in half precision, in which answers are stored
ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996, and must give 29
OF_TEACHER = ("mu", "sparsity", "kernel", "teacher_maps", "preactivation", "centre", "reseed")


class Config(MapsConfig):
    ce_weight: float = Field(0.25, ge=0)
    kd_weight: float = Field(0.75, ge=0)
    mu: float = Field(
        2.0, gt=0, description="atoms for each channel of the teacher's map; 1.5 to 4 in the paper"
    )
    sparsity: float = Field(
        0.02,
        gt=0,
        le=1,
        description="lambda, share of the atoms that the code of a pixel uses; 0.01 to 0.03 in the paper",
    )
    kernel: Kernel = Field("sigmoid", description="how similarity is computed")
    pixel: bool = Field(True, description="match the atom that wins each pixel")
    image: bool = Field(True, description="match the mean code of each image")
    preactivation: bool = Field(
        False, description="take the maps before their activation, where they end in one"
    )
    centre: bool = Field(
        True, description="give the teacher's pixels mean 0 and unit power first; false: as in the paper"
    )
    labels_on: Literal["similarities", "scores"] = Field(
        "similarities",
        description="what the term `pixel` reads; scores: similarities before they are squashed",
    )
    reseed: int = Field(
        0,
        ge=0,
        description="epochs after which atoms that won no pixel are moved to one; 0: never, the paper's form",
    )


class SparseRepresentationMatching(MapMethod[Config]):
    terms_of = "none"

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        if not (cfg.pixel or cfg.image):
            raise InputError(
                "method.pixel and method.image are both false, so there is nothing to match. Set one of them "
                "to true."
            )
        if cfg.image and cfg.kernel == "linear":
            raise InputError(
                "method.image needs similarities from 0 to 1, but those of kernel linear have no limits. Set "
                "method.image to false."
            )
        names = cfg.teacher_maps or probe.teacher.body  # all of them, so that they fit any student
        widths = {name: probe.teacher.maps[name].shape[1] for name in names}
        atoms = {name: max(1, round(cfg.mu * width)) for name, width in widths.items()}
        # k by map: how many numbers of a code are not 0
        self.code_sizes = {
            name: max(1, int(cfg.sparsity * count + ROUNDING)) for name, count in atoms.items()
        }
        self.sizes = {name: probe.teacher.maps[name].shape[2:] for name in names}  # of the teacher's maps
        self.dictionary = nn.ModuleDict(
            {_key(name): Dictionary(widths[name], atoms[name], cfg.kernel) for name in names}
        )
        students = {s: probe.student.maps[s].shape[1] for s, _ in self.pairs}
        self.student_dictionary = nn.ModuleDict(
            {_key(s): Dictionary(students[s], atoms[t], cfg.kernel) for s, t in self.pairs}
        )

    def shown(self, answer: Answer) -> Mapping[str, Tensor]:
        """The maps by name: as they are, or before their activation."""
        return {**answer.maps, **answer.preactivations} if self.cfg.preactivation else answer.maps

    def terms(self, step: Step) -> Terms:
        return {}

    def phases(self, student: Tapped) -> list[Phase]:
        layers = dict.fromkeys(layer for s, _ in self.pairs for layer in student.upto(s))
        return [
            Phase("dictionary", self.dictionary_loss, (self.dictionary,), of_teacher=OF_TEACHER),
            Phase("match", self.match_loss, (*layers, self.student_dictionary)),
            self.last_phase(student.net),
        ]

    def dictionary_loss(self, step: Step) -> Loss:
        """Squared error of the reconstruction of each map, mean over pixels and channels."""
        loss, shown = {}, self.shown(step.teacher)
        for name, size in self.code_sizes.items():
            dictionary, pixels = dictionary_of(self.dictionary, name), pixels_of(shown[name])
            if dictionary.training and step.starts_epoch:
                everyones = step.of_all(pixels)
                dictionary.start_epoch(everyones, size, step, centre=self.cfg.centre, reseed=self.cfg.reseed)
            prepared = dictionary.prepared(pixels)
            code, winners = dictionary.code(prepared, size)
            error = F.mse_loss(code @ dictionary.atoms, prepared)
            if dictionary.training:
                dictionary.wins += processes.summed(count(winners, len(dictionary.wins)))
                variance = prepared.var((0, 1), correction=0).mean().clamp_min(TINY)
                self.notes[f"used {name}"] = (dictionary.wins > 0).float().mean()
                self.notes[f"error {name}"] = error.detach() / variance
            loss[name] = Weighted(error, 1.0)
        return loss

    def match_loss(self, step: Step) -> Loss:
        losses: dict[str, list[Tensor]] = {name: [] for name in ("pixel", "image") if getattr(self.cfg, name)}
        for s, t in self.pairs:
            labels, wanted, pixels = self.targets(step, s, t)
            dictionary = dictionary_of(self.student_dictionary, s)
            scores = dictionary.scores(pixels)
            similarities = dictionary.similarities(scores)
            if self.cfg.pixel:
                logits = scores if self.cfg.labels_on == "scores" else similarities
                losses["pixel"].append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
            if self.cfg.image:
                means = similarities.mean(1).clamp(0, 1)
                losses["image"].append(F.binary_cross_entropy(means, wanted.clamp(0, 1)))
            self.notes[f"agreement {s}"] = (scores.detach().argmax(2) == labels).float().mean()
        return {name: Weighted(torch.stack(values).sum(), 1.0) for name, values in losses.items()}

    def targets(self, step: Step, s: str, t: str) -> tuple[Tensor, Tensor, Tensor]:
        """The atoms that win the teacher's pixels, the mean of its codes, and the student's pixels."""
        student, dictionary = self.shown(step.student)[s], dictionary_of(self.dictionary, t)
        size, atoms = student.shape[2:], len(dictionary.atoms)

        def winners_and_mean(answer: Answer) -> Tensor:
            codes, labels = self.codes(answer, t, size)
            return torch.cat([labels.float(), codes.mean(1)], 1)

        settings = (*size, self.code_sizes[t], self.cfg.preactivation)
        frozen = Frozen(f"codes {t}", winners_and_mean, dictionary, settings)
        both = step.teacher.made_by(frozen) if atoms <= HALF_HOLDS else winners_and_mean(step.teacher)
        side = [min(pair) for pair in zip(size, self.sizes[t], strict=True)]
        return both[:, :-atoms].long(), both[:, -atoms:], pixels_of(pool_to(student, *side))

    @torch.no_grad()
    def codes(self, answer: Answer, t: str, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The teacher's codes and the atoms that win its pixels, where the student's map has this size.

        If the sizes differ, the codes are averaged to the smaller one.
        """
        dictionary, teacher = dictionary_of(self.dictionary, t), self.shown(answer)[t]
        codes, labels = dictionary.code(dictionary.prepared(pixels_of(teacher)), self.code_sizes[t])
        if teacher.shape[2:] == size:
            return codes, labels
        side = [min(pair) for pair in zip(size, teacher.shape[2:], strict=True)]
        codes = pixels_of(pool_to(codes.mT.view(len(codes), -1, *teacher.shape[2:]), *side))
        return codes, codes.argmax(2)

    @torch.no_grad()
    def health(self, answers: Iterable[Answer]) -> "dict[str, Health]":
        """How well each dictionary codes the maps in these answers of the teacher, by name of the map."""
        totals: dict[str, list[Tensor]] = {}
        for shown in map(self.shown, answers):
            for name, size in self.code_sizes.items():
                dictionary = dictionary_of(self.dictionary, name)
                pixels = dictionary.prepared(pixels_of(shown[name]))
                code, winners = dictionary.code(pixels, size)
                missed = (code @ dictionary.atoms - pixels).square().sum().double()
                flat = pixels.flatten(0, 1).double()
                sums = [count(winners, len(dictionary.wins)), missed, flat.sum(0), flat.square().sum()]
                if name in totals:
                    sums = [old + new for old, new in zip(totals[name], sums, strict=True)]
                totals[name] = sums
        return {name: Health.of(*sums) for name, sums in totals.items()}


class Health(NamedTuple):
    """How well a dictionary codes some pixels."""

    atoms: int
    used: int  # atoms that win at least one pixel
    effective: float  # exp of the entropy of the wins: equal to `atoms` if all win equally often
    error: float  # of the reconstruction, as a share of the pixels' variance
    wins: list[int]  # pixels, by atom

    @classmethod
    def of(cls, wins: Tensor, missed: Tensor, total: Tensor, squares: Tensor) -> "Health":
        """From sums over pixels: wins of each atom, squared errors, values by channel, squared values."""
        pixels = wins.sum()
        power = squares - total.square().sum() / pixels
        effective = torch.special.entr(wins / pixels).sum().exp()
        return cls(
            len(wins),
            int((wins > 0).sum()),
            effective.item(),
            (missed / power.clamp_min(TINY)).item(),
            wins.tolist(),
        )


class Dictionary(nn.Module):
    """Atoms, M x C, and a scalar bias. Pixels are B x HW x C."""

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

    def prepared(self, pixels: Tensor) -> Tensor:
        """The pixels without their mean and with unit power; as they are in the paper's form."""
        return (pixels - self.mean) / self.scale

    def scores(self, pixels: Tensor) -> Tensor:
        """Similarities before they are squashed, B x HW x M; in rbf the bias is the log of the sharpness."""
        if self.kernel != "rbf":
            return F.linear(pixels, self.atoms, self.bias.expand(len(self.atoms)))
        distances = (
            pixels.square().sum(2, keepdim=True) + self.atoms.square().sum(1) - 2 * pixels @ self.atoms.T
        )
        return distances.clamp_min(0) * (-self.bias.exp() / pixels.shape[2])

    def similarities(self, scores: Tensor) -> Tensor:
        """What the kernel makes of the scores, B x HW x M."""
        match self.kernel:
            case "sigmoid":
                return scores.sigmoid()
            case "rbf":
                return scores.exp()
            case "linear":
                return scores

    def code(self, pixels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The sparse codes, B x HW x M with `size` of M not 0, and the atom that wins each pixel, B x HW."""
        scores = self.scores(pixels)
        best, places = scores.topk(size, dim=2)
        return torch.zeros_like(scores).scatter(2, places, self.similarities(best)), places[:, :, 0]

    @torch.no_grad()
    def start_epoch(self, pixels: Tensor, size: int, step: Step, *, centre: bool, reseed: int) -> None:
        """At the first step of an epoch: set what comes from the pixels and is not trained."""
        if step.epoch == 0 and centre:
            self.mean.copy_(pixels.mean((0, 1)))
            self.scale.copy_((pixels - self.mean).square().mean().sqrt().clamp_min(TINY))
        if step.epoch and reseed and step.epoch % reseed == 0 and step.progress < RESEED_UNTIL:
            self.revive(self.prepared(pixels), size, step.random)
        self.wins.zero_()

    def revive(self, pixels: Tensor, size: int, random: torch.Generator | None = None) -> None:
        """Move atoms that won no pixel to pixels that the others code badly."""
        code, _ = self.code(pixels, size)
        errors = (code @ self.atoms - pixels).square().sum(2).flatten()
        dead = (self.wins == 0).nonzero()[: len(errors), 0]
        if len(dead):
            chosen = torch.multinomial(errors + TINY, len(dead), generator=random)
            self.atoms[dead] = pixels.flatten(0, 1)[chosen] / size


def dictionary_of(dictionaries: nn.ModuleDict, name: str) -> Dictionary:
    """The dictionary of the map called `name`."""
    dictionary = dictionaries[_key(name)]
    assert isinstance(dictionary, Dictionary)
    return dictionary


def _key(name: str) -> str:
    return name.replace(".", "/")  # the name of a module must not have a dot


def pixels_of(features: Tensor) -> Tensor:
    """The pixels of a map: B x C x H x W to B x HW x C."""
    return features.flatten(2).transpose(1, 2)


def count(winners: Tensor, atoms: int) -> Tensor:
    """How many pixels each atom wins."""
    return torch.zeros(atoms, dtype=torch.int64, device=winners.device).index_add_(
        0, winners.flatten(), torch.ones_like(winners).flatten()
    )
