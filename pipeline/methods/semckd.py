"""Semantic calibration (Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021 and its longer version).

Every stage s of the student learns from every stage t of the teacher, and how much of each is learned too, for every instance i (Eq. 7):
`sum over s and t of mean over i of a[i, s, t] * MSE(T_t[i], P_st(S_s)[i])`. P_st is a projection, 1x1, 3x3 and 1x1 convolutions, once both
maps are pooled to the smaller size. The weights are an attention over similarities (Eq. 8-10): `A = R(F) R(F)^T`, B x B, of each stage;
its row i becomes a query (student) or a key (teacher) of length one by an MLP; `a = softmax over t of q.k / tau`. Weights 1, 1 and 400
and tau 1 are the paper's (its code has 50 for ImageNet); its softened attention, SemCKD_tau, has tau 2 or 4. `preactivation` takes the maps
before their activation (+Pre). The stages are all but the stem. `note/<student stage>~<teacher stage>` in the curves is a pair's mean
weight.

Ablations, the paper's table 6: `equal`, all weights the same; `shared`, learned weights, the same for all instances; `no_projection`, the
MSE of rows of the similarities after one more MLP, one for all stages, instead of that of the maps; `no_mlp`, one linear layer instead of
Linear-ReLU-Linear; `no_similarity`, the maps go into the MLPs instead of A.

Our reading. The published MLP is sized by the batch. Here its first layer has a column for each of `LONGEST` places in a batch and B
images use the first B: for one B that is the published layer exactly, and no other B breaks it. Places are dealt at random, so what the
columns learn in a full batch holds in a short last one, in the parts of a batch that is cut up and in the share of a process. A batch
beyond LONGEST starts again at the first column. Validation runs no method. The text leaves open, and we chose: an MLP a stage (ablation 4
puts maps of different length in, so there can't be one for all) of width `SUBSPACE`; projections inside as wide as the narrower of the two
stages, with batch norm and ReLU after the first and second convolution; vectors of length one in `no_mlp` too, without which the softmax
is of numbers so large that training soon gives NaN; gradients reach the student through its similarities as well. Eq. 3 sums cross-entropy
and term alike over the batch; here both are means. The authors' code also divides by the number of student stages, the paper doesn't.

What we found (CIFAR-10, resnet14 to resnet8, 50 images a class, three seeds, term_weight 5): 48.0 % against 40.2 % for KD in the same
steps. But the attention is a vote and no map: every student stage gives the teacher's first stage .79, which is all that vectors of length
one allow at tau 1 with three stages, e / (e + 2 / e). The weighted error is least where all weight is on the easiest target, and nothing in
the loss speaks for another. At 400 the term drowns labels and KD (34.7 %, one seed, validation).
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods.base import Method, StagesConfig, Terms, preactivation_pairs, stage_pairs
from pipeline.taps import Step, View

Maps = Sequence[Tensor]  # one B x C x H x W a stage
LONGEST = 1024  # batch whose places all have columns of their own
PUBLISHED = 64  # batch of the paper's tables: a column starts as if there were that many
SUBSPACE = 32  # length of queries, keys and values


class SemanticCalibration(Method):
    class Config(StagesConfig):
        kd_weight: float = Field(1.0, ge=0)
        term_weight: float = Field(400.0, ge=0)
        attention_temperature: float = Field(1.0, gt=0, description="above 1: softened attention")
        preactivation: bool = Field(False, description="maps before their activation")
        ablation: Literal["", "equal", "shared", "no_projection", "no_mlp", "no_similarity"] = Field(
            "", description="what is taken away, as in the paper's table 6; empty: nothing"
        )

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: SemanticCalibration.Config = cfg
        checked = preactivation_pairs if cfg.preactivation else stage_pairs
        checked(probe, cfg.student_stages[:1], cfg.teacher_stages[:1])  # refuses a network that shows no stage
        self.students = cfg.student_stages or _all_but_stem(probe.student)
        self.teachers = cfg.teacher_stages or _all_but_stem(probe.teacher)
        self.pairs = [pair for s, t in product(self.students, self.teachers) for pair in checked(probe, (s,), (t,))]
        students, teachers = self.maps(probe)
        self.weights = _weights(cfg, students, teachers)
        self.errors = RowErrors() if cfg.ablation == "no_projection" else MapErrors(students, teachers)

    def maps(self, step: Step) -> tuple[Maps, Maps]:
        student, teacher = (view.preactivations if self.cfg.preactivation else view.stages for view in (step.student, step.teacher))
        return [student[name] for name in self.students], [teacher[name] for name in self.teachers]

    def terms(self, step: Step) -> Terms:
        students, teachers = self.maps(step)
        weights = self.weights(students, teachers)
        means = weights.detach().mean(0).flatten()
        self.notes.update({f"{s}~{t}": mean for (s, t), mean in zip(self.pairs, means, strict=True)})
        return {"features": (weights * self.errors(students, teachers)).sum((1, 2)).mean()}


def _all_but_stem(view: View) -> tuple[str, ...]:
    return tuple(name for name in view.stages if name != "stem")


def _weights(cfg: SemanticCalibration.Config, students: Maps, teachers: Maps) -> nn.Module:
    if cfg.ablation in ("equal", "shared"):
        return Table(len(students), len(teachers), cfg.attention_temperature, learned=cfg.ablation == "shared")
    seen = _instances if cfg.ablation == "no_similarity" else similarities

    def embeddings(maps: Maps) -> nn.ModuleList:
        match cfg.ablation:
            case "no_mlp":
                return nn.ModuleList(nn.Sequential(Places(), Unit()) for _ in maps)
            case "no_similarity":
                return nn.ModuleList(_mlp(nn.Linear(each[0].numel(), SUBSPACE)) for each in maps)
        return nn.ModuleList(_mlp(Places()) for _ in maps)

    return Attention(seen, embeddings(students), embeddings(teachers), cfg.attention_temperature)


def _instances(features: Tensor) -> Tensor:
    return features.flatten(1)


def similarities(features: Tensor) -> Tensor:
    """Of every two instances of a batch, B x B (Eq. 8)."""
    rows = features.flatten(1)
    return rows @ rows.T


class Places(nn.Linear):
    """A linear layer over rows of similarities, whatever the size of the batch: a column for each place in it."""

    def __init__(self) -> None:
        super().__init__(LONGEST, SUBSPACE)
        nn.init.uniform_(self.weight, -(PUBLISHED**-0.5), PUBLISHED**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        places = torch.arange(rows.shape[1], device=rows.device) % LONGEST
        return F.linear(rows, self.weight[:, places], self.bias)


class Unit(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows)


def _mlp(first: nn.Linear) -> nn.Sequential:
    """Linear-ReLU-Linear-normalisation (Eq. 9)."""
    return nn.Sequential(first, nn.ReLU(), nn.Linear(SUBSPACE, SUBSPACE), Unit())


class Attention(nn.Module):
    """How much every instance's student stages heed the teacher's stages: B x students x teachers, 1 over the teachers (Eq. 10 and 16)."""

    def __init__(self, seen: Callable[[Tensor], Tensor], queries: nn.ModuleList, keys: nn.ModuleList, temperature: float) -> None:
        super().__init__()
        self.seen, self.queries, self.keys, self.temperature = seen, queries, keys, temperature

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        queries = torch.stack([embed(self.seen(each)) for embed, each in zip(self.queries, students, strict=True)], 1)
        keys = torch.stack([embed(self.seen(each)) for embed, each in zip(self.keys, teachers, strict=True)], 1)
        return (queries @ keys.mT / self.temperature).softmax(2)


class Table(nn.Module):
    """Weights that are the same for every instance: 1 x students x teachers."""

    def __init__(self, students: int, teachers: int, temperature: float, *, learned: bool) -> None:
        super().__init__()
        self.temperature = temperature
        logits = torch.zeros(1, students, teachers)
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        return (self.logits / self.temperature).softmax(2)


class MapErrors(nn.Module):
    """How far every instance's projected student maps are from the teacher's: B x students x teachers (Eq. 6 and 7)."""

    def __init__(self, students: Maps, teachers: Maps) -> None:
        super().__init__()
        self.projections = nn.ModuleList(_projection(s.shape[1], t.shape[1]) for s, t in product(students, teachers))

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        # with channels last, convolutions of one position are plain matrix products, up to twice as fast on a CPU
        students, teachers = ([each.contiguous(memory_format=torch.channels_last) for each in maps] for maps in (students, teachers))
        sized = [match_size(*pair) for pair in product(students, teachers)]
        errors = [
            F.mse_loss(project(reached), wanted, reduction="none").mean((1, 2, 3))
            for project, (reached, wanted) in zip(self.projections, sized, strict=True)
        ]
        return torch.stack(errors, 1).unflatten(1, (len(students), len(teachers)))


def _projection(student: int, teacher: int) -> nn.Sequential:
    inside = min(student, teacher)
    return nn.Sequential(
        nn.Conv2d(student, inside, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, inside, 3, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, teacher, 1),
    )


class RowErrors(nn.Module):
    """How far the rows of the student's similarities are from the teacher's in a space of their own: B x students x teachers."""

    def __init__(self) -> None:
        super().__init__()
        self.values = _mlp(Places())

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        reached, wanted = (torch.stack([self.values(similarities(each)) for each in maps], 1) for maps in (students, teachers))
        return (reached[:, :, None] - wanted[:, None]).square().mean(3)
