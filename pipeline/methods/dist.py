"""DIST (Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022).

The probabilities Y = softmax(z / tau), B x classes, of both networks need not be equal; it is enough that
they are related alike. Their distance is `d(a, b) = 1 - r(a, b)`, where r is Pearson's correlation. So the
student may be less sure than a strong teacher.

- `inter`: `beta * tau^2 * mean over images of d(row of Y_t, row of Y_s)`, how the classes of an image relate
- `intra`: `gamma * tau^2 * mean over classes of d(column of Y_t, column of Y_s)`, how the images of the batch
  relate in one class

Default weights of labels, KD and terms: 1, 0 and 2, with beta = gamma = 1 and tau 4, which is the authors'
setting for CIFAR-100 (ImageNet: tau 1). tau^2 is in their program, not in the text.

Our reading: a distance is computed as half the squared distance of two centred vectors of length one, which
is the same number and exactly 0 for equal vectors. A vector whose numbers differ by no more than rounding, as
the columns of a batch of one image do, has no relations: it counts as 0, without a gradient.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.methods import LogitConfig, LogitMethod, Terms
from pipeline.taps.step import Step


class Config(LogitConfig):
    term_weight: float = Field(2.0, ge=0)
    inter_weight: float = Field(1.0, ge=0, description="beta, factor of the term `inter`")
    intra_weight: float = Field(1.0, ge=0, description="gamma, factor of the term `intra`")


class StrongerTeacher(LogitMethod[Config]):
    def terms(self, step: Step) -> Terms:
        cfg, tau = self.cfg, self.cfg.temperature
        student, teacher = (F.softmax(logits / tau, dim=1) for logits in self.logits(step))
        inter = unrelatedness(student, teacher)
        intra = unrelatedness(step.of_all(student).T, step.of_all(teacher).T)
        return {"inter": cfg.inter_weight * tau**2 * inter, "intra": cfg.intra_weight * tau**2 * intra}


def unrelatedness(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 - Pearson's correlation` of the rows of one matrix with those of the other, mean over the rows."""
    return (relations(student) - relations(teacher)).square().sum(1).mean() / 2


def relations(x: Tensor) -> Tensor:
    """Each row with mean 0 and length one; or all 0, if its numbers are equal up to rounding."""
    centred = x - x.mean(1, keepdim=True)
    length, rounding = (each.norm(dim=1, keepdim=True) for each in (centred, x))
    return torch.where(
        length > 8 * torch.finfo(x.dtype).eps * rounding, centred / length.clamp_min(1e-30), 0.0
    )
