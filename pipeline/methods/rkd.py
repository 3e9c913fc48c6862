"""Relational knowledge distillation (Park et al., "Relational Knowledge Distillation", 2019).

On pooled embeddings x, with the Huber loss h (smooth L1, beta 1):
distance: `h(d^T_ij, d^S_ij)`, d the Euclidean distances of one network's batch divided by their mean over its pairs;
angle: `h(a^T_ijk, a^S_ijk)`, a_ijk the cosine of the angle at x_j between x_i and x_k.
Weights 25 and 50 are the paper's and stand inside the terms; the CRD paper's tables weigh their sum 1, with CE 1 and KD 0.

Our reading: means over the pairs i != j and the triples i != j != k != i (public code divides by B^2 and B^3, where the others add
nothing, so its values are 1.6 % and 4.7 % lower at batch 64). The law of cosines gives every angle from the distances alone.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import squared_distances
from pipeline.methods.base import Method, MethodConfig, Pairs, Terms
from pipeline.taps import Step


class RelationalDistillation(Method):
    pairs: Pairs = (("pooled", "pooled"),)

    class Config(MethodConfig):
        distance_weight: float = Field(25.0, ge=0)
        angle_weight: float = Field(50.0, ge=0)

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: RelationalDistillation.Config = cfg

    def terms(self, step: Step) -> Terms:
        student, teacher = squared_distances(step.student.pooled), squared_distances(step.teacher.pooled)
        return {
            "distance": self.cfg.distance_weight * distance_loss(student, teacher),
            "angle": self.cfg.angle_weight * angle_loss(student, teacher),
        }


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """From squared distances, B x B."""
    pairs = max(len(student) * (len(student) - 1), 1)
    s, t = (d / (d.sum() / pairs).clamp_min(1e-12) for d in (_root(student), _root(teacher)))
    return F.smooth_l1_loss(s, t, reduction="sum") / pairs


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """From squared distances, B x B."""
    n = len(student)
    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="sum") / max(n * (n - 1) * (n - 2), 1)


def cosines(squared: Tensor) -> Tensor:
    """`[j, i, k]` is the cosine at j between i and k; 0 where one of them is j."""
    far = squared > 0
    inverse = torch.where(far, squared, 1).rsqrt() * far
    opposite = squared[:, :, None] + squared[:, None, :] - squared
    return opposite * (inverse[:, :, None] * inverse[:, None, :] / 2)


def _root(squared: Tensor) -> Tensor:
    far = squared > 0
    return torch.where(far, squared, 1).sqrt() * far
