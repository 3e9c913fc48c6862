"""Relational knowledge distillation (Park et al., "Relational Knowledge Distillation", 2019).

The terms compare pooled embeddings x (B x D), with the Huber loss h (smooth L1 with beta 1):

- `distance`: mean of `h(d^T_ij, d^S_ij)`, where d are the Euclidean distances in the batch, divided by their
  mean
- `angle`: mean of `h(a^T_ijk, a^S_ijk)`, where a_ijk is the cosine of the angle at x_j between x_i and x_k

The weights of the paper, 25 and 50, are part of the terms. Default weights of labels, KD and terms: 1, 0 and
1, as in the tables of the CRD paper.

Our reading: the means are over pairs with i != j and over triples with i, j and k all different. Public code
divides by B^2 and B^3 instead; the other pairs and triples add nothing. All angles follow from the distances
alone, by the law of cosines.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import squared_distances
from pipeline.methods import Method, MethodConfig, Pairs, Terms
from pipeline.taps.step import Step


class Config(MethodConfig):
    distance_weight: float = Field(25.0, ge=0, description="factor of the term `distance`")
    angle_weight: float = Field(50.0, ge=0, description="factor of the term `angle`")


class RelationalDistillation(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"),)

    def terms(self, step: Step) -> Terms:
        student, teacher = (
            squared_distances(step.of_all(answer.pooled)) for answer in (step.student, step.teacher)
        )
        return {
            "distance": self.cfg.distance_weight * distance_loss(student, teacher),
            "angle": self.cfg.angle_weight * angle_loss(student, teacher),
        }


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean Huber loss of the distances, from the squared distances of both networks, B x B."""
    pairs = max(len(student) * (len(student) - 1), 1)
    s, t = (d / (d.sum() / pairs).clamp_min(1e-12) for d in (_root(student), _root(teacher)))
    return F.smooth_l1_loss(s, t, reduction="sum") / pairs


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean Huber loss of the cosines, from the squared distances of both networks, B x B."""
    n = len(student)
    triples = max(n * (n - 1) * (n - 2), 1)
    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="sum") / triples


def cosines(squared: Tensor) -> Tensor:
    """B x B to B x B x B: `[j, i, k]` is the cosine of the angle at j between i and k.

    It is 0 if i or k has the same embedding as j.
    """
    far = squared > 0
    inverse = torch.where(far, squared, 1).rsqrt() * far
    opposite = squared[:, :, None] + squared[:, None, :] - squared
    return opposite * (inverse[:, :, None] * inverse[:, None, :] / 2)


def _root(squared: Tensor) -> Tensor:
    far = squared > 0
    return torch.where(far, squared, 1).sqrt() * far
