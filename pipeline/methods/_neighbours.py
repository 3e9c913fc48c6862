"""Probabilities that images of a batch are neighbours (Passalis & Tefas, 2018): shared by pkt and hkd."""

import torch.nn.functional as F
from torch import Tensor

SMALLEST_KERNEL = 1e-7  # smaller values count as this, so that opposite embeddings have a logarithm


def cosine(x: Tensor) -> Tensor:
    """The cosine kernel `(cos(x_i, x_j) + 1) / 2`, B x D to B x B."""
    unit = F.normalize(x)
    return (unit @ unit.T + 1) / 2


def neighbours(kernel: Tensor) -> Tensor:
    """The probability that image i picks image j as its neighbour: B x B to B x (B - 1), each row sums to 1.

    The diagonal is left out, because an image is not its own neighbour.
    """
    n = len(kernel)
    others = kernel.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1).clamp_min(SMALLEST_KERNEL)
    return others / others.sum(1, keepdim=True)


def transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean over i != j of p^T_ij * log(p^T_ij / p^S_ij)` with the cosine kernel.

    0 for a batch of one image, which has no neighbours.
    """
    p_s, p_t = neighbours(cosine(student)), neighbours(cosine(teacher))
    return (p_t * (p_t / p_s).log()).sum() / max(p_t.numel(), 1)
