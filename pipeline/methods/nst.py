"""Neuron selectivity transfer (Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity
Transfer", 2017).

Each channel of a map, scaled to length one over its positions, is one observation: x_i of the student's map,
y_j of the teacher's. The term is the squared maximum mean discrepancy of the two sets under the kernel
`k(x, y) = (x . y)^2`, mean over the batch, sum over maps:
`mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)`.
The two maps may differ in their number of channels.

Default weights of labels, KD and term: 1, 0 and 50, as in the tables of the CRD paper.

Our reading: all maps but the stem are matched. If one network has more of them, only its deepest ones are.
Maps of different size are pooled to the smaller size. The teacher's own mean is part of the value, so that
equal networks give 0. With X of C x HW, `sum_ij (x_i . y_j)^2 = ||X Y^T||_F^2 = <X^T X, Y^T Y>`. The cheaper
of the two forms is computed.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import match_size
from pipeline.methods import MapMethod, MapsConfig, Terms
from pipeline.taps.step import Step


class Config(MapsConfig):
    term_weight: float = Field(50.0, ge=0)


class NeuronSelectivity(MapMethod[Config]):
    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.maps, step.teacher.maps
        return {
            "selectivity": torch.stack([discrepancy(student[s], teacher[t]) for s, t in self.pairs]).sum()
        }


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of the channels of two maps, mean over the batch."""
    x, y = (maps.flatten(2) for maps in match_size(student, teacher))
    n, m, positions = x.shape[1], y.shape[1], x.shape[2]
    if positions * (n + m) < n * n + n * m + m * m:
        x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
        return (x.mT @ x / n - y.mT @ y / m).pow(2).sum((1, 2)).mean()
    own_x, own_y, cross = x @ x.mT, y @ y.mT, x @ y.mT
    # to scale the Gram matrices is cheaper than to scale the maps
    a, b = inverse_norms(own_x), inverse_norms(own_y)
    return mean_kernel(own_x, a, a) + mean_kernel(own_y, b, b) - 2 * mean_kernel(cross, a, b)


def inverse_norms(gram: Tensor) -> Tensor:
    """1 / length of each channel, from their Gram matrix, B x C x C to B x C.

    1 for a channel that is 0 everywhere; its products are 0 anyway.
    """
    squares = gram.diagonal(dim1=1, dim2=2)
    return torch.where(squares > 0, squares, 1).rsqrt()


def mean_kernel(gram: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Mean of k over all pairs of channels, from their products and the inverse lengths of both."""
    return (gram * a[:, :, None] * b[:, None, :]).pow(2).mean()
