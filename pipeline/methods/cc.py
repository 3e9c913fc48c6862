"""Correlation congruence (Peng et al., "Correlation Congruence for Knowledge Distillation", 2019).

Embeddings are projected to 128 dimensions and scaled to length one; the correlation of two instances is the Gaussian kernel
`exp(-gamma ||x - y||^2)` by its Taylor series of order P: `C_ij = exp(-2 gamma) * sum over p = 0..P of (2 gamma)^p / p! * (x_i . x_j)^p`.
The term is `||C^T - C^S||_F^2 / B^2`. Order 2 and gamma .4 are the settings of Knowledge-Distillation-Zoo, the public code with this
kernel, which weighs the term 100. Weights 1, 0 and .02 are those of the CRD paper's tables; the paper's instance-level part is
`kd_weight`.

The tables' .02 was chosen for a simplification without a kernel: with D_i = |x^S_i - x^T_i|, the mean over i of `D_i . D_(i+1)`, which
compares each instance with itself and sees no correlation. Its values are larger than ours by orders of magnitude, so .02 is weak here:
raise `term_weight` towards 100 if the term's share of the gradient is small.

Our reading: only the student's projection learns; the teacher's is a fixed random orthonormal one, which keeps correlations. If both
learned, mapping every instance to one point would make the term 0.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.methods.base import Method, MethodConfig, Pairs, Terms
from pipeline.taps import Step


class CorrelationCongruence(Method):
    pairs: Pairs = (("pooled", "pooled"),)

    class Config(MethodConfig):
        term_weight: float = Field(0.02, ge=0)
        dimensions: int = Field(128, ge=1, description="of the projections")
        order: int = Field(2, ge=1, description="of the Taylor series")
        gamma: float = Field(0.4, gt=0, description="of the Gaussian kernel")

    teacher_projection: Tensor

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: CorrelationCongruence.Config = cfg
        self.student_projection = nn.Linear(probe.student.pooled.shape[1], cfg.dimensions, bias=False)
        orthonormal = nn.init.orthogonal_(torch.empty(cfg.dimensions, probe.teacher.pooled.shape[1]))
        self.register_buffer("teacher_projection", orthonormal)

    def terms(self, step: Step) -> Terms:
        student = self.student_projection(step.student.pooled)
        teacher = F.linear(step.teacher.pooled, self.teacher_projection)
        student, teacher = (correlation(x, self.cfg.gamma, self.cfg.order) for x in (student, teacher))
        return {"correlation": F.mse_loss(student, teacher)}


def correlation(x: Tensor, gamma: float, order: int) -> Tensor:
    """The Gaussian kernel of the rows of x, scaled to length one, by its Taylor series: B x B."""
    unit = F.normalize(x)
    cosine = unit @ unit.T
    powers = (cosine**p * ((2 * gamma) ** p / math.factorial(p)) for p in range(order + 1))
    return math.exp(-2 * gamma) * torch.stack(list(powers)).sum(0)
