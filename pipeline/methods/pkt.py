"""Probabilistic knowledge transfer (Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018).

The cosine kernel `K(x, y) = (cos(x, y) + 1) / 2` of pooled embeddings says how likely an instance picks another one as its neighbour:
`p_ij = K(x_i, x_j) / sum over k != i of K(x_i, x_k)`. The term is `mean over i != j of p^T_ij * log(p^T_ij / p^S_ij)`.
Weights 1, 0 and 30000 are those of the CRD paper's tables; they are made for the mean over all pairs, not for the sum over a row.

Our reading: an instance isn't its own neighbour (public code counts it, which adds the same constant to every row before scaling).
Kernels below 1e-7 count as 1e-7, so that opposite embeddings have a logarithm.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.methods.base import Method, MethodConfig, Terms
from pipeline.taps import Step

SMALLEST = 1e-7


class ProbabilisticTransfer(Method):
    class Config(MethodConfig):
        term_weight: float = Field(30000.0, ge=0)

    def terms(self, step: Step) -> Terms:
        return {"neighbours": divergence(step.student.pooled, step.teacher.pooled)}


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    p_s, p_t = neighbours(student), neighbours(teacher)
    return (p_t * (p_t / p_s).log()).sum() / max(p_t.numel(), 1)  # one instance has no neighbours: 0


def neighbours(embeddings: Tensor) -> Tensor:
    """Probabilities of the other instances as neighbours: B x (B - 1), rows sum to one."""
    unit = F.normalize(embeddings)
    kernel = off_diagonal((unit @ unit.T + 1) / 2).clamp_min(SMALLEST)
    return kernel / kernel.sum(1, keepdim=True)


def off_diagonal(square: Tensor) -> Tensor:
    n = len(square)
    return square.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
