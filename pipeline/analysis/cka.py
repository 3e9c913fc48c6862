"""Centred kernel alignment with a linear kernel (Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019).

`CKA(X, Y) = ||Y^T X||^2 / (||X^T X|| ||Y^T Y||)`, Frobenius norms, of features B x D with their mean over instances taken away: 1 where
one is the other turned, scaled and shifted, 0 where they have nothing in common or one is the same for every instance. In float64.

Of few instances and many features plain CKA is close to 1 whatever they are, so it depends on the batch. `batchwise_cka` is the estimate
that doesn't (Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021): as many batches as there are, each of four or more
instances, and HSIC without its bias. It may be slightly negative.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.taps import View


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Of two sets of features of the same instances, embeddings or maps: a number."""
    x, y = (_centred(each) for each in (x, y))
    if len(x) > min(x.shape[1], y.shape[1]):  # the smaller products of the two forms
        both, own = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    else:
        kernels = x @ x.T, y @ y.T
        both, own = (kernels[0] * kernels[1]).sum(), kernels[0].norm() * kernels[1].norm()
    return torch.where(own > 0, both / own, 0.0)


def stage_cka(student: View, teacher: View) -> Tensor:
    """CKA of every stage of a student with every stage of a teacher, which saw the same images: student stages x teacher stages."""
    ours, theirs = (_unit_kernels(view) for view in (student, teacher))
    return ours @ theirs.T


def batchwise_cka(batches: Iterable[tuple[View, View]]) -> Tensor:
    """`stage_cka` without bias from the size of the batches."""
    both: Tensor | float = 0.0
    own: list[Tensor | float] = [0.0, 0.0]
    for pair in batches:
        student, teacher = (torch.stack([_unbiased(_kernel(stage)).flatten() for stage in view.stages.values()]) for view in pair)
        size = len(pair[0].logits)
        assert size > 3, "a batch of three or fewer tells nothing"
        scale = 1 / (size * (size - 3))
        both = both + scale * student @ teacher.T
        own = [before + scale * each.square().sum(1) for before, each in zip(own, (student, teacher), strict=True)]
    ours, theirs = (torch.as_tensor(each).sqrt() for each in own)
    spread = ours[:, None] * theirs
    return torch.where(spread > 0, both / spread, 0.0)


def _centred(features: Tensor) -> Tensor:
    rows = features.detach().flatten(1).double()
    centred = rows - rows.mean(0)
    return centred * (centred.norm() > 1e-12 * rows.norm())  # else rounding alone would have a shape


def _kernel(features: Tensor) -> Tensor:
    rows = _centred(features)
    return rows @ rows.T


def _unit_kernels(view: View) -> Tensor:
    """A row a stage: CKA is the cosine between two of them."""
    return F.normalize(torch.stack([_kernel(stage).flatten() for stage in view.stages.values()]), eps=1e-300)


def _unbiased(kernel: Tensor) -> Tensor:
    """So that the product of two, over B (B - 3), estimates HSIC without bias: centred as if the diagonal weren't there."""
    size = len(kernel)
    others = kernel - kernel.diagonal().diag()
    sums = others.sum(0)
    centred = others - (sums[:, None] + sums) / (size - 2) + sums.sum() / ((size - 1) * (size - 2))
    return centred - centred.diagonal().diag()
