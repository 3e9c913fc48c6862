"""Asymmetric metric learning (Budnik & Avrithis, "Asymmetric Metric Learning for Knowledge Transfer", 2021).

Anchors are the student's, positives (same label) and negatives (another label) the teacher's: `s(a, x) = cos(student(a), teacher(x))`.
`form: contrastive`  mean over positives of `1 - s(a, p)` + mean over negatives of `[s(a, n) - margin]+`
`form: triplet`      mean over triplets of `[margin + s(a, n) - s(a, p)]+`
An anchor's own image in the teacher's space is a positive too, which adds plain regression (the paper's "+"): every anchor has one.
Where the pooled embeddings differ in length, a learned linear layer brings the student's into the teacher's space, as in the authors' code.

Our reading: the paper's tuples are one anchor, one positive and a few mined negatives, summed; here the batch is everybody's tuple and is
averaged over, so that the value doesn't grow with it. `1 - s` instead of `-s` only shifts the value. The margins, .7 and .1, are the usual
ones of image retrieval; the paper is about that, so that CE stands beside the term here and its weight, 1, has to be tuned.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.methods.base import Method, MethodConfig, Pairs, Terms
from pipeline.taps import Step


class AsymmetricMetricLearning(Method):
    pairs: Pairs = (("pooled", "pooled"),)

    class Config(MethodConfig):
        form: Literal["contrastive", "triplet"] = "contrastive"
        contrastive_margin: float = Field(0.7, ge=-1, le=1, description="similarity below which a negative is let alone")
        triplet_margin: float = Field(0.1, ge=0, le=2, description="by how much a positive must be more similar than a negative")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: AsymmetricMetricLearning.Config = cfg
        own, wanted = probe.student.pooled.shape[1], probe.teacher.pooled.shape[1]
        self.project = nn.Identity() if own == wanted else nn.Linear(own, wanted)

    def terms(self, step: Step) -> Terms:
        similarity = F.normalize(self.project(step.student.pooled), dim=1) @ F.normalize(step.teacher.pooled, dim=1).T
        same = step.labels[:, None] == step.labels
        if self.cfg.form == "triplet":
            return {"triplet": triplet(similarity, same, self.cfg.triplet_margin)}
        return {"contrastive": contrastive(similarity, same, self.cfg.contrastive_margin)}


def contrastive(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    """Anchors are rows; `same` marks the positives."""
    return _mean(1 - similarity, same) + _mean((similarity - margin).relu(), ~same)


def triplet(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    """Every anchor with every positive and every negative of the batch."""
    anchor, positive = same.nonzero(as_tuple=True)
    hinge = (margin + similarity[anchor] - similarity[anchor, positive, None]).relu()  # pairs x B, every column a possible negative
    return _mean(hinge, ~same[anchor])


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """0 where nothing is chosen: a batch may have no negatives."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
