"""Semantic mismatch score (Chen et al., "Cross-Layer Distillation with Semantic Calibration", Eq. 18).

`1 / |C| * sum over the associated maps (s, t) of a[s, t] * MSE(A_s, A_t)`, where `A = R(F) R(F)^T`, B x B,
holds the similarity of every two instances of a batch in a map F. Lower is better. The score grows with the
fourth power of the scale of the maps, so the paper reports its logarithm.

The weights are 1 if a method has none. Those of semckd sum to 1 over the teacher's maps, as in the paper.
This alone makes their scores about T times smaller, with T maps of the teacher. So compare such a score with
that of weights 1 / T for all pairs, not with that of weights 1.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.taps.answer import Answer


def mismatch(student: Answer, teacher: Answer, weights: Mapping[tuple[str, str], float]) -> float:
    """The score of the answers to one batch; `weights` by pair: (map of the student, map of the teacher)."""
    of_student = {s: _similarities(student.maps[s]) for s, _ in weights}
    of_teacher = {t: _similarities(teacher.maps[t]) for _, t in weights}
    errors = {(s, t): F.mse_loss(of_student[s], of_teacher[t]).item() for s, t in weights}
    return sum(weight * errors[pair] for pair, weight in weights.items()) / len(weights)


@torch.no_grad()
def _similarities(features: Tensor) -> Tensor:
    rows = features.flatten(1).double()
    return rows @ rows.T
