"""Similarity-preserving distillation (Tung & Mori, "Similarity-Preserving Knowledge Distillation", 2019).

`G(F) = n(R(F) R(F)^T)` is the B x B similarity of a batch, R flattening each instance's map and n scaling each row to length one; the
term is `||G(T) - G(S)||_F^2 / B^2` on the last map of both networks. Weights 1, 0 and 3000 are those of the CRD paper's tables.
Maps of any size and width can be compared, so none is pooled.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.inputs import InputError
from pipeline.methods.base import Method, MethodConfig, Terms
from pipeline.taps import Step, View


class SimilarityPreserving(Method):
    class Config(MethodConfig):
        term_weight: float = Field(3000.0, ge=0)
        student_stage: str = Field("", description="empty: the last stage")
        teacher_stage: str = Field("", description="empty: the last stage")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        student = _last_or(cfg.student_stage, probe.student, "method.student_stage")
        teacher = _last_or(cfg.teacher_stage, probe.teacher, "method.teacher_stage")
        self.pairs = [(student, teacher)]

    def terms(self, step: Step) -> Terms:
        ((student, teacher),) = self.pairs
        return {"similarity": F.mse_loss(similarity(step.student.stages[student]), similarity(step.teacher.stages[teacher]))}


def similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T)


def _last_or(named: str, view: View, field: str) -> str:
    if named:
        view.stage(named, field)
        return named
    if not view.stages:
        raise InputError(f"{field}: the network shows no stage. Name the module whose output is one under `taps` of the network.")
    return list(view.stages)[-1]
