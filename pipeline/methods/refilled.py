"""REFILLED (Ye, Lu & Zhan, "Generalized Knowledge Distillation via Relationship Matching", 2022).

Only relations between images are taken from the teacher, never its logits. So teacher and student may have
different classes.

Phase `embed` trains all of the student but its classifier. A tuple is an anchor, a positive (another image of
its label) and K impostors. These are images of other labels that are semi-hard: in the student's normalised
embedding they are further from the anchor than the positive is, by less than a margin of 0.2. With D the
distances from the anchor in one network, `p = softmax(-D / tau1)` are 1 + K probabilities of positive and
impostors, tau1 4. Term `tuples`: `KL(p of the teacher || p of the student)`. While this phase runs, the mean
of the teacher's embeddings t (B x D) is computed for each class: the centres, classes x D.

Phase `distill` trains the whole student. The centres make a nearest-centre classifier with scores h,
B x classes, of which there are two forms (`score`):

- `dot`: `h(x)_c = t(x) . centre_c / ||centre_c||`, as in the authors' program
- `squared`: `h(x)_c = -||t(x) - centre_c||^2`

Term `local`, beside the cross-entropy, only over the classes that occur in the batch, tau2 2:
`lambda_i * KL(softmax(h / tau2) || softmax(logits / tau2))`.
Here `lambda_i = lambda * confidence_i`, with a confidence in (0, 1]. Lambda is `term_weight`.

Variants: `adaptive: false` sets each confidence to 1 (REFILLED-minus). `embedding_only: true` leaves the
cross-entropy alone in phase `distill` (REFILLED-EMB). `negatives` limits the impostors in a tuple (1:
triplets). Phase `embed` of the authors' program: `embed_weight: 1000`, `tuple_distances: normalised`,
`choose_embedding: true`, and sgd at 0.1, with a cosine that ends at a tenth (`floor: 0.1`).

After phase `embed` the record has the accuracy of the nearest class mean on validation images (table 4), and
a histogram of confidence_i over the student's training images (figure 3).

Our reading, where the paper's supplement is silent:

- confidence_i is the largest probability of the nearest-centre classifier among all classes of the student,
  `max softmax(h / tau2)`.
- Distances between images are Euclidean.
- `score: squared`, our own form, is that of Gaussian classes. In the setting of [findings.md](findings.md) it
  is about 14 times sharper than `dot`, so the teacher looks sure where it is wrong.
- Each pair of images of one label in the batch makes a tuple. Of too many impostors, the nearest are used.
  Both terms are means, over tuples or images.
- Lambda is 2 by default, where the supplement has its best results.
- A centre is the mean over all views that phase `embed` has shown. These are augmented views of the train
  subset.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import centre_products, centre_scores, exact_distances
from pipeline.methods import Loss, Method, MethodConfig, Pairs, Phase, Terms, Weighted
from pipeline.taps import processes
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

NEVER = -1e9  # score of what is left out of a softmax


class Config(MethodConfig):
    term_weight: float = Field(2.0, ge=0, description="lambda, weight of the term `local`")
    temperature: float = Field(
        2.0, gt=0, description="tau2, divides nearest-centre scores and the student's logits; also tau of KD"
    )
    tuple_temperature: float = Field(4.0, gt=0, description="tau1, divides the distances within a tuple")
    margin: float = Field(
        0.2, gt=0, description="an impostor is further away than the positive by less than this"
    )
    negatives: int = Field(0, ge=0, description="largest number of impostors in a tuple; 0: no limit")
    score: Literal["dot", "squared"] = Field(
        "dot",
        description="of an image for a centre: the embedding times the centre scaled to length one, which is "
        "the authors' form, or minus the squared distance",
    )
    embed_weight: float = Field(
        1.0, gt=0, description="weight of the term `tuples`, which matters to sgd; the authors have 1000"
    )
    tuple_distances: Literal["raw", "normalised"] = Field(
        "raw", description="of the embeddings, or of the embeddings scaled to length one, as the authors have"
    )
    choose_embedding: bool = Field(
        False,
        description="end phase embed with its best weights on validation images, by the nearest class mean; "
        "false: with its last ones",
    )
    adaptive: bool = Field(
        True, description="weigh each image by the teacher's confidence; false: REFILLED-minus"
    )
    embedding_only: bool = Field(False, description="phase distill has only the cross-entropy: REFILLED-EMB")


class Refilled(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"), ("logits", "pooled"))
    terms_of = "labelled"

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.centres = Centres(probe.student.logits.shape[1], probe.teacher.pooled.shape[1])
        self.pending: list[
            tuple[Tensor, Tensor]
        ] = []  # the teacher's embeddings in this step, and the labels

    def phases(self, student: Tapped) -> list[Phase]:
        return [
            Phase(
                "embed",
                self.embed_loss,
                (*student.all_but_classifier(), self.centres),
                needs_labels=True,
                embedding="chosen" if self.cfg.choose_embedding else "measured",
            ),
            self.last_phase(student.net),
        ]

    def embed_loss(self, step: Step) -> Loss:
        if self.centres.training:
            self.pending.append((step.teacher.pooled, step.labels))
        return {"tuples": Weighted(self.tuples(step), self.cfg.embed_weight)}

    def tuples(self, step: Step) -> Tensor:
        """The term `tuples`, mean over the tuples of the batch; 0 if there are none."""
        student, teacher = (step.of_all(answer.pooled) for answer in (step.student, step.teacher))
        anchor, positive, impostors = mine(
            student, step.of_all(step.labels), self.cfg.margin, self.cfg.negatives
        )
        student, teacher = (
            _comparison(self.compared(pooled), anchor, positive, impostors, self.cfg.tuple_temperature)
            for pooled in (student, teacher)
        )
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        is_tuple = impostors.any(1)
        return (divergence * is_tuple).sum() / is_tuple.sum().clamp(min=1)

    def compared(self, pooled: Tensor) -> Tensor:
        """The embeddings whose distances a tuple compares."""
        return pooled if self.cfg.tuple_distances == "raw" else F.normalize(pooled)

    def scores(self, step: Step) -> Tensor:
        """h / tau2, B x classes."""
        score = centre_products if self.cfg.score == "dot" else centre_scores
        return score(step.teacher.pooled, self.centres.means) / self.cfg.temperature

    def image_weights(self, step: Step) -> Tensor | None:
        weighs = self.cfg.adaptive and not self.cfg.embedding_only
        return confidence(self.scores(step)) if weighs else None

    def terms(self, step: Step) -> Terms:
        if self.cfg.embedding_only:
            return {}
        scores = self.scores(step)
        logits = step.student.logits / self.cfg.temperature
        present: Tensor = torch.unique(step.of_all(step.labels))
        teacher, student = (each[:, present].log_softmax(1) for each in (scores, logits))
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        sure = confidence(scores)
        self.notes["confidence"] = sure.mean()
        return {"local": (divergence * sure).mean() if self.cfg.adaptive else divergence.mean()}

    def after_backward(self, step: Step, student: Tapped) -> None:
        """Add this step to the centres, once a step in every process, because they add up their sums."""
        if self.pending:
            embeddings, labels = zip(*self.pending, strict=True)
            self.centres.add(torch.cat(embeddings), torch.cat(labels))
            self.pending.clear()


class Centres(nn.Module):
    """The mean embedding of each class, classes x D."""

    means: Tensor
    counts: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, width))
        self.register_buffer("counts", torch.zeros(classes, 1))

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add these embeddings, B x D, and those of all other processes to the means of their classes."""
        member = F.one_hot(labels, len(self.means)).to(embeddings.dtype)
        new = processes.summed(torch.cat([member.T @ embeddings, member.sum(0).unsqueeze(1)], dim=1))
        sums, counts = new[:, :-1], new[:, -1:]
        self.counts += counts
        self.means += (sums - counts * self.means) / self.counts.clamp(min=1)


def confidence(scores: Tensor) -> Tensor:
    """How sure the nearest-centre classifier is of each image, in (0, 1]."""
    return scores.softmax(1).amax(1)


@torch.no_grad()
def mine(
    embeddings: Tensor, labels: Tensor, margin: float, negatives: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchor and positive of P tuples, and P x B that marks their impostors; a row may have none.

    `negatives` is the largest number of impostors in a tuple; 0: no limit.
    """
    unit = F.normalize(embeddings)
    distance = exact_distances(unit, unit)
    same = labels[:, None] == labels
    anchor, positive = (same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)).nonzero(
        as_tuple=True
    )
    gap = distance[anchor] - distance[anchor, positive, None]
    impostors = ~same[anchor] & (gap > 0) & (gap < margin)
    if 0 < negatives < len(labels):
        nearest = gap.masked_fill(~impostors, torch.inf).topk(negatives, largest=False).indices
        impostors &= torch.zeros_like(impostors).scatter_(1, nearest, True)
    return anchor, positive, impostors


def _comparison(
    embeddings: Tensor, anchor: Tensor, positive: Tensor, impostors: Tensor, tau: float
) -> Tensor:
    """log p of the positive, then of each image of the batch as an impostor: P x (1 + B)."""
    score = exact_distances(embeddings, embeddings) / -tau
    return torch.cat(
        [score[anchor, positive, None], score[anchor].masked_fill(~impostors, NEVER)], dim=1
    ).log_softmax(1)
