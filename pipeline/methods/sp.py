"""Similarity-preserving distillation (Tung & Mori, "Similarity-Preserving Knowledge Distillation", 2019).

The similarities in a batch are `G(F) = n(R(F) R(F)^T)`, B x B, where R flattens the map of each image and n
scales each row to length one. The term is `||G(T) - G(S)||_F^2 / B^2` for the last map of each network. Maps
of any size and width can be compared, so none is pooled.

Default weights of labels, KD and term: 1, 0 and 3000, as in the tables of the CRD paper.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.settings import InputError
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step


class Config(MethodConfig):
    term_weight: float = Field(3000.0, ge=0)
    student_map: str = Field("", description="the student's map; empty: its last one")
    teacher_map: str = Field("", description="the teacher's map; empty: its last one")


class SimilarityPreserving(Method[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        student = _named_or_last(cfg.student_map, probe.student, "student")
        teacher = _named_or_last(cfg.teacher_map, probe.teacher, "teacher")
        self.pairs = [(student, teacher)]

    def terms(self, step: Step) -> Terms:
        ((student, teacher),) = self.pairs
        maps = step.student.maps[student], step.teacher.maps[teacher]
        ours, theirs = (similarity(step.of_all(each)) for each in maps)
        return {"similarity": F.mse_loss(ours, theirs)}


def similarity(features: Tensor) -> Tensor:
    """G of a map: B x C x H x W to B x B."""
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T)


def _named_or_last(name: str, answer: Answer, network: str) -> str:
    if name:
        answer.named_map(name, f"method.{network}_map")
        return name
    if not answer.maps:
        raise InputError(
            f"The {network} has no map to match. Under `taps` of that network, name a module whose output is "
            "a map."
        )
    return list(answer.maps)[-1]
