"""Neuron selectivity transfer (Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017).

Each channel of a map, scaled to length one over its positions, is a sample; the term is the squared maximum mean discrepancy between
the student's samples x and the teacher's y under the kernel `k(x, y) = (x . y)^2`:
`mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)`, mean over the batch, sum over stages. Weights 1, 0 and 50 are those of
the CRD paper's tables. The numbers of channels may differ.

Computed by Gram matrices: with X of C x HW, `sum_ij (x_i . y_j)^2 = ||X Y^T||_F^2 = <X^T X, Y^T Y>`, whichever is cheaper, and never by
an outer product a pair. Our reading: the stages are all but the stem; where one network has more, its deepest ones. The teacher's own
mean is kept, so that equal networks give 0.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import match_size
from pipeline.methods.base import Method, StagesConfig, Terms, stage_pairs
from pipeline.taps import Step


class NeuronSelectivity(Method):
    class Config(StagesConfig):
        term_weight: float = Field(50.0, ge=0)

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = stage_pairs(probe, cfg.student_stages, cfg.teacher_stages)

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.stages, step.teacher.stages
        return {"selectivity": torch.stack([discrepancy(student[s], teacher[t]) for s, t in self.pairs]).sum()}


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    x, y = (maps.flatten(2) for maps in match_size(student, teacher))
    n, m, positions = x.shape[1], y.shape[1], x.shape[2]
    if positions * (n + m) < n * n + n * m + m * m:
        x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
        return (x.mT @ x / n - y.mT @ y / m).pow(2).sum((1, 2)).mean()
    own_x, own_y, cross = x @ x.mT, y @ y.mT, x @ y.mT
    a, b = inverse_norms(own_x), inverse_norms(own_y)  # scaling the Gram matrices is cheaper than scaling the maps
    return mean_kernel(own_x, a, a) + mean_kernel(own_y, b, b) - 2 * mean_kernel(cross, a, b)


def inverse_norms(gram: Tensor) -> Tensor:
    """Of the channels a Gram matrix is of; 1 for a dead one, whose products are 0 anyway."""
    squares = gram.diagonal(dim1=1, dim2=2)
    return torch.where(squares > 0, squares, 1).rsqrt()


def mean_kernel(gram: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (gram * a[:, :, None] * b[:, None, :]).pow(2).mean()
