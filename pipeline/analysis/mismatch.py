"""Semantic mismatch score (Chen et al., "Cross-Layer Distillation with Semantic Calibration", Eq. 18).

`1 / |C| * sum over the associated stages (s, t) of a[s, t] * MSE(A_s, A_t)`, where `A = R(F) R(F)^T` holds the similarity of every two
instances of a batch at a stage; the less the better. It grows with the fourth power of the maps' scale, so the paper tells its logarithm.

Weights are 1 where a method has none. Those of semckd sum to 1 over the teacher's stages, as their number in the paper does: with T of them
its score is about T times less for that alone, so compare a weighted score with 1 / T for every pair, not with 1.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.taps import View


def mismatch(student: View, teacher: View, weights: Mapping[tuple[str, str], float]) -> float:
    """The score of a batch both networks saw; `weights` are those of the associated pairs, (student stage, teacher stage)."""
    ours = {s: _similarities(student.stages[s]) for s, _ in weights}
    theirs = {t: _similarities(teacher.stages[t]) for _, t in weights}
    return sum(weight * F.mse_loss(ours[s], theirs[t]).item() for (s, t), weight in weights.items()) / len(weights)


@torch.no_grad()
def _similarities(features: Tensor) -> Tensor:
    rows = features.flatten(1).double()
    return rows @ rows.T
