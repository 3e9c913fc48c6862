"""Attention transfer (Zagoruyko & Komodakis, "Paying More Attention to Attention", 2017).

A stage's attention map is `Q(F) = n(mean over channels of F^2)`, a unit vector over its positions; the term is the sum over stages of
`mean((Q(T) - Q(S))^2)`, the mean taken over batch and positions. Weights 1, 0 and 1000 are those of the CRD paper's tables (1, 1 and
1000 in SemCKD's).

Our reading: the stages are all but the stem, as in those tables; where one network has more, its deepest ones. Maps of different size
are brought to the smaller one before their attention is taken.
"""

import torch
from pydantic import Field
from torch import Tensor

from pipeline.functional import attention_difference
from pipeline.methods.base import Method, StagesConfig, Terms, stage_pairs
from pipeline.taps import Step


class AttentionTransfer(Method):
    class Config(StagesConfig):
        term_weight: float = Field(1000.0, ge=0)

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = stage_pairs(probe, cfg.student_stages, cfg.teacher_stages)

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.stages, step.teacher.stages
        return {"attention": torch.stack([attention_difference(student[s], teacher[t]) for s, t in self.pairs]).sum()}
