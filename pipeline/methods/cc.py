"""Correlation congruence (Peng et al., "Correlation Congruence for Knowledge Distillation", 2019).

Pooled embeddings are projected to 128 dimensions and scaled to length one: x, B x 128. The correlation of two
images is the Gaussian kernel `exp(-gamma ||x_i - x_j||^2)`, as its Taylor series of order P:
`C_ij = exp(-2 gamma) * sum over p = 0..P of (2 gamma)^p / p! * (x_i . x_j)^p`, B x B. The term is
`||C^T - C^S||_F^2 / B^2`. The part of the paper's loss that matches single images is plain KD (`kd_weight`).

Default weights of labels, KD and term: 1, 0 and 0.02, as in the tables of the CRD paper. Order 2 and gamma
0.4 are those of Knowledge-Distillation-Zoo, the public code that has this kernel and gives the term a weight
of 100. With this kernel 0.02 may be weak ([findings.md](findings.md)): raise `term_weight` towards 100 if the
term has a small share of the gradient.

Our reading: only the student's projection is trained. The teacher's is fixed, random and orthonormal, which
keeps the correlations. If both were trained, mapping each image to the same point would make the term 0.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.methods import Method, MethodConfig, Pairs, Terms
from pipeline.taps.step import Step


class Config(MethodConfig):
    term_weight: float = Field(0.02, ge=0)
    dimensions: int = Field(128, ge=1, description="length of the projected embeddings")
    order: int = Field(2, ge=1, description="order of the Taylor series")
    gamma: float = Field(0.4, gt=0, description="factor in the exponent of the Gaussian kernel")


class CorrelationCongruence(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"),)

    teacher_projection: Tensor

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.student_projection = nn.Linear(probe.student.pooled.shape[1], cfg.dimensions, bias=False)
        orthonormal = nn.init.orthogonal_(torch.empty(cfg.dimensions, probe.teacher.pooled.shape[1]))
        self.register_buffer("teacher_projection", orthonormal)

    def terms(self, step: Step) -> Terms:
        student = self.student_projection(step.student.pooled)
        teacher = F.linear(step.teacher.pooled, self.teacher_projection)
        student, teacher = (
            correlation(step.of_all(x), self.cfg.gamma, self.cfg.order) for x in (student, teacher)
        )
        return {"correlation": F.mse_loss(student, teacher)}


def correlation(x: Tensor, gamma: float, order: int) -> Tensor:
    """The Gaussian kernel of the rows of x, scaled to length one, as its Taylor series: B x D to B x B."""
    unit = F.normalize(x)
    cosine = unit @ unit.T
    powers = (cosine**p * ((2 * gamma) ** p / math.factorial(p)) for p in range(order + 1))
    return math.exp(-2 * gamma) * torch.stack(list(powers)).sum(0)
