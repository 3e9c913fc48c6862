"""Centred kernel alignment with a linear kernel (Kornblith et al., "Similarity of Neural Network
Representations Revisited", 2019).

`CKA(X, Y) = ||Y^T X||^2 / (||X^T X|| ||Y^T Y||)`, with Frobenius norms, of features B x D whose mean over the
instances has been subtracted. It is 1 if one is the other except for rotation, scale and shift, and 0 if they
have nothing in common or one is the same for every instance.

If instances are few and features many, this is close to 1 for any features, so it depends on the size of the
batch. `batchwise_cka` is the estimate that does not (Nguyen et al., "Do Wide and Deep Networks Learn the Same
Things?", 2021): it sums unbiased estimates of the three products (HSIC) over batches of four or more
instances. It can be slightly negative. All is computed in float64.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.taps.answer import Answer


def batchwise_cka(batches: Iterable[tuple[Answer, Answer]]) -> Tensor:
    """CKA of each map of a student with each map of a teacher, maps of the student x maps of the teacher.

    Each batch holds the answers of both to the same images.
    """
    both: Tensor | float = 0.0
    own: list[Tensor | float] = [0.0, 0.0]
    for answers in batches:
        student, teacher = (
            torch.stack([_unbiased(_kernel(features)).flatten() for features in answer.maps.values()])
            for answer in answers
        )
        size = len(answers[0].logits)
        assert size > 3, "an unbiased estimate needs batches of at least four"
        scale = 1 / (size * (size - 3))
        both = both + scale * student @ teacher.T
        own = [
            before + scale * kernels.square().sum(1)
            for before, kernels in zip(own, (student, teacher), strict=True)
        ]
    of_student, of_teacher = (torch.as_tensor(hsic).sqrt() for hsic in own)
    norms = of_student[:, None] * of_teacher
    return torch.where(norms > 0, both / norms, 0.0)


def _kernel(features: Tensor) -> Tensor:
    """Similarities of the instances, B x B, of centred features."""
    rows = features.detach().flatten(1).double()
    centred = rows - rows.mean(0)
    if centred.norm() <= 1e-12 * rows.norm():  # always the same: what is left is rounding
        return rows.new_zeros(len(rows), len(rows))
    return centred @ centred.T


def _unbiased(kernel: Tensor) -> Tensor:
    """The kernel centred without its diagonal: the product of two, over B (B - 3), is an unbiased HSIC."""
    size = len(kernel)
    others = kernel - kernel.diagonal().diag()
    sums = others.sum(0)
    centred = others - (sums[:, None] + sums) / (size - 2) + sums.sum() / ((size - 1) * (size - 2))
    return centred - centred.diagonal().diag()
