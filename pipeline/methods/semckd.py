"""Semantic calibration (Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021 and its
longer version).

Each map S_s of the student learns from each map T_t of the teacher, and how much it learns from each is
trained too, for each image i (Eq. 7):
`sum over s and t of mean over i of a[i, s, t] * MSE(T_t[i], P_st(S_s)[i])`, divided by the number of the
student's maps.
The projection P_st has convolutions of 1x1, 3x3 and 1x1 and is twice as wide inside as T_t. `inside: slim`
makes it as wide as the narrower of the two maps. Before it, both maps are pooled to the smaller size.
The weights a (B x maps of the student x maps of the teacher) are an attention over similarities (Eq. 8-10).
For a map F, `A = R(F) R(F)^T` is B x B, where R flattens the map of each image. An MLP makes row i of A a
query (student) or a key (teacher) of length one, and `a = softmax over t of q.k / tau`. `preactivation` takes
the maps before their activation (+Pre). In the curves, `note/<student's map>~<teacher's map>` is the mean
weight of a pair.

Default weights of labels, KD and term: 1, 1 and 400, and tau 1, as in the paper (its program has 50 for
ImageNet). Its softened attention, SemCKD_tau, has tau 2 or 4. All maps but the stem take part.

`ablation`, as in the paper's table 6:

- `equal`: all weights are the same
- `shared`: the weights are trained, but they are the same for all images
- `no_projection`: not the MSE of the maps, but of rows of their similarities, after one more MLP for all maps
- `no_mlp`: one linear layer instead of Linear-ReLU-Linear
- `no_similarity`: the MLPs read the maps instead of A

Our reading: the published MLP has the size of the batch. Here its first layer has a column for each of
`LONGEST` places in a batch, and B images use the first B columns. So for one B it is the published layer, and
batches of other sizes work too. A longer batch starts again at the first column. Images have random places,
so what the columns learn from full batches also holds for a short last batch, and for the parts of a batch
that is accumulated. Validation does not run the method.

The text leaves these points open, and we chose:

- Each map has its own MLP, since in `no_similarity` the maps differ in length. All MLPs have the width
  `SUBSPACE`.
- The width inside a projection is that of the authors' program. A batch norm and a ReLU follow its first and
  its second convolution, and none of the three has a bias.
- Queries and keys have length one in `no_mlp` too.
- Gradients also reach the student through its similarities.
- Eq. 3 sums cross-entropy and term over the batch; here both are means.
- Eq. 7 is not divided by the number of the student's maps. The authors' program divides, and the weight 400
  belongs to that.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods import MapsConfig, Method, Terms, map_pairs, preactivation_pairs
from pipeline.taps.step import Step

Maps = Sequence[Tensor]  # B x C x H x W each
LONGEST = 1024  # images in the longest batch in which each has a column of its own
PUBLISHED = 64  # batch size of the paper's tables; a column is initialised as if there were this many
SUBSPACE = 32  # length of queries, keys and values


class Config(MapsConfig):
    kd_weight: float = Field(1.0, ge=0)
    term_weight: float = Field(400.0, ge=0)
    attention_temperature: float = Field(1.0, gt=0, description="tau; above 1: softened attention")
    preactivation: bool = Field(False, description="take the maps before their activation")
    inside: Literal["published", "slim"] = Field(
        "published",
        description="how wide projections are: twice the teacher's map, or the narrower of the two maps",
    )
    ablation: Literal["", "equal", "shared", "no_projection", "no_mlp", "no_similarity"] = Field(
        "", description="what is left out, as in the paper's table 6; empty: nothing"
    )


class SemanticCalibration(Method[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        checked_pairs = preactivation_pairs if cfg.preactivation else map_pairs
        checked_pairs(probe, cfg.student_maps[:1], cfg.teacher_maps[:1])  # refuses a network without maps
        self.students = list(cfg.student_maps or probe.student.body)
        self.teachers = list(cfg.teacher_maps or probe.teacher.body)
        everything = product(self.students, self.teachers)
        self.pairs = [pair for s, t in everything for pair in checked_pairs(probe, (s,), (t,))]
        students, teachers = self.maps(probe)
        self.weights = _weights(cfg, students, teachers)
        is_slim = cfg.inside == "slim"
        self.errors = (
            RowErrors() if cfg.ablation == "no_projection" else MapErrors(students, teachers, slim=is_slim)
        )

    def maps(self, step: Step) -> tuple[Maps, Maps]:
        student, teacher = (
            answer.preactivations if self.cfg.preactivation else answer.maps
            for answer in (step.student, step.teacher)
        )
        return [student[name] for name in self.students], [teacher[name] for name in self.teachers]

    def terms(self, step: Step) -> Terms:
        own = self.maps(step)
        everyones = [[step.of_all(each) for each in maps] for maps in own]
        weights = self.weights(*everyones)
        means = weights.detach().mean(0).flatten()
        self.notes.update({f"{s}~{t}": mean for (s, t), mean in zip(self.pairs, means, strict=True)})
        compares_images = isinstance(self.errors, RowErrors)
        errors = self.errors(*everyones) if compares_images else step.of_all(self.errors(*own))
        per_image = (weights * errors).sum((1, 2)) / len(self.students)
        return {"features": per_image.mean()}


def _weights(cfg: Config, students: Maps, teachers: Maps) -> nn.Module:
    if cfg.ablation in ("equal", "shared"):
        trained = cfg.ablation == "shared"
        return SharedWeights(len(students), len(teachers), cfg.attention_temperature, trained=trained)
    rows_of = _flattened if cfg.ablation == "no_similarity" else similarities

    def embeddings(maps: Maps) -> nn.ModuleList:
        match cfg.ablation:
            case "no_mlp":
                return nn.ModuleList(nn.Sequential(Places(), Unit()) for _ in maps)
            case "no_similarity":
                return nn.ModuleList(_mlp(nn.Linear(each[0].numel(), SUBSPACE)) for each in maps)
        return nn.ModuleList(_mlp(Places()) for _ in maps)

    return Attention(rows_of, embeddings(students), embeddings(teachers), cfg.attention_temperature)


def _flattened(features: Tensor) -> Tensor:
    return features.flatten(1)


def similarities(features: Tensor) -> Tensor:
    """A of a map, B x B: the products of each two images of the batch (Eq. 8)."""
    rows = features.flatten(1)
    return rows @ rows.T


class Places(nn.Linear):
    """A linear layer for rows of similarities, B x B to B x SUBSPACE: a column for each place in a batch."""

    def __init__(self) -> None:
        super().__init__(LONGEST, SUBSPACE)
        nn.init.uniform_(self.weight, -(PUBLISHED**-0.5), PUBLISHED**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        places = torch.arange(rows.shape[1], device=rows.device) % LONGEST
        return F.linear(rows, self.weight[:, places], self.bias)


class Unit(nn.Module):
    """Scales each row to length one."""

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows)


def _mlp(first: nn.Linear) -> nn.Sequential:
    """The MLP of Eq. 9: linear, ReLU, linear, then length one."""
    return nn.Sequential(first, nn.ReLU(), nn.Linear(SUBSPACE, SUBSPACE), Unit())


class Attention(nn.Module):
    """The weights a (Eq. 10 and 16), B x maps of the student x maps of the teacher.

    They sum to 1 over the teacher's maps.
    """

    def __init__(
        self,
        rows_of: Callable[[Tensor], Tensor],
        queries: nn.ModuleList,
        keys: nn.ModuleList,
        temperature: float,
    ) -> None:
        super().__init__()
        self.rows_of, self.queries, self.keys = rows_of, queries, keys
        self.temperature = temperature

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        queries, keys = self.embed(self.queries, students), self.embed(self.keys, teachers)
        return (queries @ keys.mT / self.temperature).softmax(2)

    def embed(self, embeddings: nn.ModuleList, maps: Maps) -> Tensor:
        """A vector for each image and each map: B x maps x SUBSPACE."""
        return torch.stack([embed(self.rows_of(x)) for embed, x in zip(embeddings, maps, strict=True)], 1)


class SharedWeights(nn.Module):
    """Weights that are the same for all images: 1 x maps of the student x maps of the teacher."""

    def __init__(self, students: int, teachers: int, temperature: float, *, trained: bool) -> None:
        super().__init__()
        self.temperature = temperature
        logits = torch.zeros(1, students, teachers)
        if trained:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        return (self.logits / self.temperature).softmax(2)


class MapErrors(nn.Module):
    """The MSE of each projected map and each map of the teacher, for each image (Eq. 6 and 7).

    B x maps of the student x maps of the teacher.
    """

    def __init__(self, students: Maps, teachers: Maps, *, slim: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            _projection(s.shape[1], t.shape[1], slim=slim) for s, t in product(students, teachers)
        )

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        # with channels last, 1x1 convolutions are plain matrix products, which are faster on a CPU
        students, teachers = (
            [each.contiguous(memory_format=torch.channels_last) for each in maps]
            for maps in (students, teachers)
        )
        sized = [match_size(*pair) for pair in product(students, teachers)]
        errors = [
            F.mse_loss(project(s), t, reduction="none").mean((1, 2, 3))
            for project, (s, t) in zip(self.projections, sized, strict=True)
        ]
        return torch.stack(errors, 1).view(-1, len(students), len(teachers))


def _projection(student: int, teacher: int, *, slim: bool) -> nn.Sequential:
    """P_st, from the student's width to the teacher's."""
    inside = min(student, teacher) if slim else 2 * teacher
    return nn.Sequential(
        nn.Conv2d(student, inside, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, inside, 3, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, teacher, 1, bias=False),
    )


class RowErrors(nn.Module):
    """The MSE of rows of the similarities of both networks after an MLP, for each image.

    B x maps of the student x maps of the teacher.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = _mlp(Places())

    def forward(self, students: Maps, teachers: Maps) -> Tensor:
        ours, theirs = (
            torch.stack([self.values(similarities(each)) for each in maps], 1)
            for maps in (students, teachers)
        )
        return (ours[:, :, None] - theirs[:, None]).square().mean(3)
