"""Asymmetric metric learning (Budnik & Avrithis, "Asymmetric Metric Learning for Knowledge Transfer", 2021).

Anchors a come from the student; positives p (same label) and negatives n (another label) come from the
teacher. Their similarity is `s(a, x) = cos(student(a), teacher(x))`, a B x B matrix of pooled embeddings.

- `form: contrastive`: mean over positives of `1 - s(a, p)`, plus mean over negatives of `[s(a, n) - margin]+`
- `form: triplet`: mean over triplets of `[margin + s(a, n) - s(a, p)]+`

The anchor's own image, as the teacher embeds it, is a positive too. This adds plain regression (the paper's
"+"). So each anchor has a positive. If the pooled embeddings differ in length, a linear layer is trained that
maps the student's to the length of the teacher's, as in the authors' code.

Our reading: the paper's tuple is an anchor, a positive and a few mined negatives, and the paper takes sums.
Here each anchor has all positives and negatives of the batch, and we take means, so that the value does not
grow with the batch. `1 - s` instead of `-s` only shifts the value. The margins, 0.7 and 0.1, are common in
image retrieval. The paper is about retrieval, so the cross-entropy is added here, and the weight of the term,
1, has to be tuned.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.methods import Method, MethodConfig, Pairs, Terms
from pipeline.taps.step import Step


class Config(MethodConfig):
    form: Literal["contrastive", "triplet"] = Field("contrastive", description="which of the two losses")
    contrastive_margin: float = Field(
        0.7, ge=-1, le=1, description="a negative costs something only above this similarity"
    )
    triplet_margin: float = Field(
        0.1, ge=0, le=2, description="by how much a positive must be more similar than a negative"
    )


class AsymmetricMetricLearning(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"),)
    terms_of = "labelled"

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        width, teacher_width = probe.student.pooled.shape[1], probe.teacher.pooled.shape[1]
        self.project = nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width)

    def terms(self, step: Step) -> Terms:
        student = step.of_all(self.project(step.student.pooled))
        teacher, labels = step.of_all(step.teacher.pooled), step.of_all(step.labels)
        similarity = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T
        same = labels[:, None] == labels
        if self.cfg.form == "triplet":
            return {"triplet": triplet(similarity, same, self.cfg.triplet_margin)}
        return {"contrastive": contrastive(similarity, same, self.cfg.contrastive_margin)}


def contrastive(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    """Both arguments are B x B. Anchors are the rows; `same` marks the positives."""
    return _mean(1 - similarity, same) + _mean((similarity - margin).relu(), ~same)


def triplet(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    """Each anchor with each of its positives and each of its negatives in the batch; arguments as above."""
    anchor, positive = same.nonzero(as_tuple=True)
    # pairs x B: each column is a possible negative
    hinge = (margin + similarity[anchor] - similarity[anchor, positive, None]).relu()
    return _mean(hinge, ~same[anchor])


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 if there are none, because a batch may have no negatives."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
